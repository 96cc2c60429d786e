// Python types for the calls of the core: rows of named objects, made by keyword and read here by position.
//
// A dataclass would do, at ten times the time: making one and reading it by name takes longer than a small layer's
// kernel. A record's fields are all given, by name; a field that is missing, unknown or positional is a TypeError.
#pragma once

#include <Python.h>
#include <pybind11/pybind11.h>
#include <structmember.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace snnfast {

namespace py = pybind11;

// One field: its place in the row. Fields are the members of a struct derived from RecordType, in order.
class RecordType;
struct Field {
    Field(RecordType& type, const char* name);
    int index;
};

class RecordType {
public:
    RecordType(const RecordType&) = delete;

    const std::string& name() const { return name_; }
    const std::vector<PyObject*>& fields() const { return fields_; }

protected:
    explicit RecordType(const char* name) : name_(name) {}

private:
    friend struct Field;
    std::string name_;
    std::vector<PyObject*> fields_;  // interned names, for as long as the process lives
};

inline Field::Field(RecordType& type, const char* name) : index(static_cast<int>(type.fields_.size())) {
    PyObject* const interned = PyUnicode_InternFromString(name);
    if (!interned) throw py::error_already_set();
    type.fields_.push_back(interned);
}

// A record and its type's fields, which must outlive it: nothing here counts references.
template <class Type>
class Record {
public:
    // The one description of this type. Made when the module is, under the GIL.
    static const Type& type() {
        static const Type description;
        return description;
    }

    // Adds the Python type to a scope, under the description's name.
    static void add_to(py::object scope) {
        static std::vector<PyMemberDef> members;
        const auto& fields = type().fields();
        if (members.empty()) {
            for (std::size_t i = 0; i < fields.size(); ++i)
                members.push_back({PyUnicode_AsUTF8(fields[i]), T_OBJECT, offset(i), 0, nullptr});
            members.push_back({nullptr, 0, 0, 0, nullptr});
        }
        PyType_Slot slots[] = {
            {Py_tp_dealloc, reinterpret_cast<void*>(&destroy)}, {Py_tp_members, members.data()}, {0, nullptr}};
        static const std::string name = "snnfast._core." + type().name();
        PyType_Spec spec = {name.c_str(), static_cast<int>(offset(fields.size())), 0, Py_TPFLAGS_DEFAULT, slots};
        PyObject* const made = PyType_FromSpec(&spec);
        if (!made) throw py::error_already_set();
        python_type() = reinterpret_cast<PyTypeObject*>(made);
        python_type()->tp_vectorcall = &make;
        py::setattr(scope, type().name().c_str(), py::reinterpret_borrow<py::object>(made));
    }

    // Throws TypeError for anything else than a record of this type, be it of another copy of this module.
    explicit Record(py::handle record) : record_(record.ptr()) {
        const PyTypeObject *const given = Py_TYPE(record_), *const own = python_type();
        const bool same = given == own ||
                          (given->tp_basicsize == own->tp_basicsize && std::strcmp(given->tp_name, own->tp_name) == 0);
        if (!same) throw py::type_error("call must be a " + type().name() + ", got " + given->tp_name);
    }

    PyObject* at(const Field& field) const {
        PyObject* const value = row(record_)[field.index];
        return value ? value : Py_None;  // a field may be deleted
    }

    // Where a tensor's first element lies; null for None and for a tensor without elements. The record keeps the tensor
    // alive. Throws RuntimeError for one that has elements and no memory: a wrapper of others, which was taken for plain.
    template <class T = void>
    T* address(const Field& field) const {
        PyObject* const tensor = at(field);
        if (tensor == Py_None) return nullptr;
        static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
        const auto address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, data_ptr));
        if (!address) throw py::error_already_set();
        void* const pointer = PyLong_AsVoidPtr(address.ptr());
        if (!pointer) {
            if (PyErr_Occurred()) throw py::error_already_set();
            if (py::cast<long long>(py::handle(tensor).attr("numel")()) != 0)
                throw std::runtime_error(type().name() + "." + field_name(field) +
                                         " is a tensor without memory of its own (" + Py_TYPE(tensor)->tp_name + ")");
        }
        return static_cast<T*>(pointer);
    }

    long long integer(const Field& field) const {
        const long long value = PyLong_AsLongLong(at(field));
        if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
        return value;
    }

    double number(const Field& field) const {
        const double value = PyFloat_AsDouble(at(field));
        if (value == -1.0 && PyErr_Occurred()) throw py::error_already_set();
        return value;
    }

    // An object of a class that is bound by pybind11.
    template <class T>
    const T& object(const Field& field) const {
        return py::cast<const T&>(py::handle(at(field)));
    }

private:
    static std::string field_name(const Field& field) { return PyUnicode_AsUTF8(type().fields()[field.index]); }

    static PyTypeObject*& python_type() {
        static PyTypeObject* type = nullptr;
        return type;
    }

    static Py_ssize_t offset(std::size_t index) { return sizeof(PyObject) + index * sizeof(PyObject*); }
    static PyObject** row(PyObject* record) {
        return reinterpret_cast<PyObject**>(reinterpret_cast<char*>(record) + offset(0));
    }

    static void destroy(PyObject* record) {
        for (std::size_t i = 0; i < type().fields().size(); ++i) Py_XDECREF(row(record)[i]);
        PyTypeObject* const of = Py_TYPE(record);
        of->tp_free(record);
        Py_DECREF(of);
    }

    // The call of the type (PEP 590).
    static PyObject* make(PyObject* of, PyObject* const* given, size_t flags, PyObject* names) {
        const auto& fields = type().fields();
        const std::size_t count = names ? PyTuple_GET_SIZE(names) : 0;
        if (PyVectorcall_NARGS(flags) != 0 || count != fields.size())
            return PyErr_Format(PyExc_TypeError, "%s takes its %zd fields by name, got %zd by position and %zd by name",
                                type().name().c_str(), fields.size(), PyVectorcall_NARGS(flags), count);
        PyObject* const record = reinterpret_cast<PyTypeObject*>(of)->tp_alloc(reinterpret_cast<PyTypeObject*>(of), 0);
        if (!record) return nullptr;
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t at = find(PyTuple_GET_ITEM(names, i), i);
            if (at == count) {
                PyErr_Format(PyExc_TypeError, "%s has no field %R", type().name().c_str(), PyTuple_GET_ITEM(names, i));
                Py_DECREF(record);
                return nullptr;
            }
            Py_INCREF(given[i]);
            Py_XSETREF(row(record)[at], given[i]);
        }
        return record;
    }

    // The index of a name, which usually is the one that is tried first; the number of fields where there is none. (As
    // many names as fields, each another, are all of them: nothing is missing.)
    static std::size_t find(PyObject* name, std::size_t first) {
        const auto& fields = type().fields();
        if (fields[first] == name) return first;
        for (std::size_t i = 0; i < fields.size(); ++i)
            if (fields[i] == name || PyUnicode_Compare(fields[i], name) == 0) return i;
        return fields.size();
    }

    PyObject* record_;
};

}  // namespace snnfast
