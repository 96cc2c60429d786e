// The Python module snnfast._core. It takes addresses as integers and knows no torch; snnfast/ops, its only caller,
// has checked shapes, dtypes and devices.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "api.h"
#include "packing.h"
#include "threads.h"

namespace py = pybind11;

namespace snnfast {
namespace {

using Address = unsigned long long;
using Pair = std::array<i64, 2>;

template <class T = void>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

Strides strides(const Pair& pair) { return {pair[0], pair[1]}; }

// Where a call runs: threads of the CPU, or a stream of a CUDA device.
struct Where {
    int device;  // -1: CPU
    int threads;
    Address stream;
};

Layout make_layout(const std::array<i64, 3>& extent, const Pair& channels, bool held, bool residual_held,
                   const Pair& current, const Pair& residual, const Pair& spikes, const Pair& grad_spikes,
                   const Pair& grad_potential, const Pair& grad_current) {
    Layout layout;
    layout.outer = extent[0];
    layout.steps = extent[1];
    layout.inner = extent[2];
    layout.channels = channels[0];
    layout.channel_stride = channels[1];
    layout.held = held;
    layout.residual_held = residual_held;
    layout.current = strides(current);
    layout.residual = strides(residual);
    layout.spikes = strides(spikes);
    layout.grad_spikes = strides(grad_spikes);
    layout.grad_potential = strides(grad_potential);
    layout.grad_current = strides(grad_current);
    return layout;
}

Dynamics make_dynamics(double leak, double gain, double drive, double threshold, double reset_value, bool leaky,
                       bool soft, bool attached, bool fire_on_equal, bool delay, bool input_decays) {
    return {leak, gain, drive, threshold, reset_value, leaky, soft, attached, fire_on_equal, delay, input_decays};
}

Tables tables(const std::array<Address, 4>& addresses) {
    return {pointer(addresses[0]), pointer(addresses[1]), pointer(addresses[2]), pointer(addresses[3])};
}

// Addresses of mean, scale, shift, through_mean, through_variance (one table after another) and of the residual.
Normalization normalization(Address tables, Address gradient_tables, Address residual, i64 channels, int dtype) {
    Normalization n;
    if (!tables) return n;
    const i64 bytes = channels * (static_cast<DType>(dtype) == DType::float64 ? 8 : 4);
    const auto table = [&](Address first, i64 index) { return pointer(first + index * bytes); };
    n.mean = table(tables, 0);
    n.scale = table(tables, 1);
    n.shift = table(tables, 2);
    if (gradient_tables) {
        n.through_mean = table(gradient_tables, 0);
        n.through_variance = table(gradient_tables, 1);
    }
    n.residual = pointer(residual);
    return n;
}

template <class Call>
void run(const Call& call, const Where& where, void (*on_cpu)(const Call&, int),
         void (*on_cuda)(const Call&, int, void*)) {
    const py::gil_scoped_release release;
    if (where.device < 0)
        on_cpu(call, where.threads);
    else
        on_cuda(call, where.device, pointer(where.stream));
}

void forward(const Where& where, int dtype, const Layout& layout, const Dynamics& dynamics,
             const std::array<Address, 4>& table_addresses, Address normalization_tables, Address residual,
             Address current, Address initial, Address spikes, Address last, Address potential, Address checkpoints) {
    ForwardCall call;
    call.dtype = static_cast<DType>(dtype);
    call.layout = layout;
    call.dynamics = dynamics;
    call.tables = tables(table_addresses);
    call.normalization = normalization(normalization_tables, 0, residual, layout.channels, dtype);
    call.current = pointer(current);
    call.initial = pointer(initial);
    call.spikes = pointer(spikes);
    call.last = pointer(last);
    call.potential = pointer(potential);
    call.checkpoints = pointer(checkpoints);
    run(call, where, cpu::forward, cuda::forward);
}

void backward(const Where& where, int dtype, const Layout& layout, const Dynamics& dynamics,
              const std::array<Address, 4>& table_addresses, Address normalization_tables, Address gradient_tables,
              Address residual, int shape, double gamma, double beta, Address current, Address initial,
              Address checkpoints, Address grad_spikes, Address grad_last, Address grad_potential, Address grad_current,
              Address grad_residual, Address grad_initial, Address grad_threshold, Address grad_tau, Address sums) {
    BackwardCall call;
    call.dtype = static_cast<DType>(dtype);
    call.layout = layout;
    call.dynamics = dynamics;
    call.tables = tables(table_addresses);
    call.normalization = normalization(normalization_tables, gradient_tables, residual, layout.channels, dtype);
    call.surrogate = {static_cast<Shape>(shape), gamma, beta};
    call.current = pointer(current);
    call.initial = pointer(initial);
    call.checkpoints = pointer(checkpoints);
    call.grad_spikes = pointer(grad_spikes);
    call.grad_last = pointer(grad_last);
    call.grad_potential = pointer(grad_potential);
    call.grad_current = pointer(grad_current);
    call.grad_residual = pointer(grad_residual);
    call.grad_initial = pointer(grad_initial);
    call.grad_threshold = pointer(grad_threshold);
    call.grad_tau = pointer(grad_tau);
    if (sums) {  // two arrays, one after the other
        call.sum_gradient = pointer(sums);
        call.sum_product = pointer(sums + layout.neurons() * (call.dtype == DType::float64 ? 8 : 4));
    }
    run(call, where, cpu::backward, cuda::backward);
}

void channel_sum(const Where& where, int dtype, i64 arrays, i64 before, i64 channels, i64 after, Address values,
                 Address sums, Address workspace) {
    ChannelSumCall call;
    call.dtype = static_cast<DType>(dtype);
    call.arrays = arrays;
    call.before = before;
    call.channels = channels;
    call.after = after;
    call.values = pointer(values);
    call.sums = pointer<double>(sums);
    call.workspace = pointer<double>(workspace);
    run(call, where, cpu::channel_sum, cuda::channel_sum);
}

void moments(const Where& where, int dtype, const Layout& layout, Address current, Address neurons) {
    MomentsCall call;
    call.dtype = static_cast<DType>(dtype);
    call.layout = layout;
    call.current = pointer(current);
    call.neurons = pointer(neurons);
    run(call, where, cpu::moments, cuda::moments);
}

// Moments and tables from the neurons' contributions.
void finish_moments(const Where& where, int dtype, const Layout& layout, double count, Address current, Address sums,
                    double eps, int parameter_dtype, Address weight, Address bias, Address moments, Address tables,
                    Address tracked) {
    ChannelCall call;
    call.from = ChannelCall::From::contributions;
    call.dtype = static_cast<DType>(dtype);
    call.parameter_dtype = static_cast<DType>(parameter_dtype);
    call.layout = layout;
    call.count = count;
    call.current = pointer(current);
    call.sums = pointer<double>(sums);
    call.eps = eps;
    call.weight = pointer(weight);
    call.bias = pointer(bias);
    call.moments = pointer<double>(moments);
    call.tables = pointer(tables);
    call.tracked = pointer(tracked);
    run(call, where, cpu::channel, cuda::channel);
}

void normalization_tables(const Where& where, int dtype, i64 channels, double eps, Address moments, int parameter_dtype,
                          Address weight, Address bias, Address tables) {
    ChannelCall call;
    call.from = ChannelCall::From::moments;
    call.dtype = static_cast<DType>(dtype);
    call.parameter_dtype = static_cast<DType>(parameter_dtype);
    call.layout.channels = channels;
    call.eps = eps;
    call.moments = pointer<double>(moments);
    call.weight = pointer(weight);
    call.bias = pointer(bias);
    call.tables = pointer(tables);
    run(call, where, cpu::channel, cuda::channel);
}

void normalization_gradients(const Where& where, int dtype, i64 channels, double eps, double count, Address sums,
                             Address moments, Address tables, Address gradient_tables, int parameter_dtype,
                             Address grad_weight, Address grad_bias) {
    ChannelCall call;
    call.from = ChannelCall::From::gradients;
    call.dtype = static_cast<DType>(dtype);
    call.parameter_dtype = static_cast<DType>(parameter_dtype);
    call.layout.channels = channels;
    call.eps = eps;
    call.count = count;
    call.sums = pointer<double>(sums);
    call.moments = pointer<double>(moments);
    call.tables = pointer(tables);
    call.gradient_tables = pointer(gradient_tables);
    call.grad_weight = pointer(grad_weight);
    call.grad_bias = pointer(grad_bias);
    run(call, where, cpu::channel, cuda::channel);
}

void pack_bits(const Where& where, int dtype, i64 count, Address spikes, Address bits) {
    const PackCall call{static_cast<DType>(dtype), count, pointer(spikes), pointer<unsigned char>(bits)};
    run(call, where, cpu::pack_bits, cuda::pack_bits);
}

void unpack_bits(const Where& where, int dtype, i64 count, Address bits, Address spikes) {
    const UnpackCall call{static_cast<DType>(dtype), count, pointer<unsigned char>(bits), pointer(spikes)};
    run(call, where, cpu::unpack_bits, cuda::unpack_bits);
}

}  // namespace
}  // namespace snnfast

PYBIND11_MODULE(SNNFAST_MODULE, m) {
    using namespace snnfast;
    m.doc() = "Compiled kernels of snnfast; internal, called by snnfast.ops.";
    // Local to the module: the tests load a second one, with the CUDA kernels compiled for the host.
    const py::module_local local;
    py::class_<Where>(m, "Where", local)
        .def(py::init([](int device, int threads, Address stream) { return Where{device, threads, stream}; }))
        .def_property_readonly("on_device", [](const Where& where) { return where.device >= 0; });
    py::class_<Layout>(m, "Layout", local)
        .def(py::init(&make_layout), py::kw_only(), py::arg("extent"), py::arg("channels"), py::arg("held"),
             py::arg("residual_held"), py::arg("current"), py::arg("residual"), py::arg("spikes"),
             py::arg("grad_spikes"), py::arg("grad_potential"), py::arg("grad_current"));
    py::class_<Dynamics>(m, "Dynamics", local)
        .def(py::init(&make_dynamics), py::kw_only(), py::arg("leak"), py::arg("gain"), py::arg("drive"),
             py::arg("threshold"), py::arg("reset_value"), py::arg("leaky"), py::arg("soft"), py::arg("attached"),
             py::arg("fire_on_equal"), py::arg("delay"), py::arg("input_decays"));
    m.def("forward", &forward);
    m.def("backward", &backward);
    m.def("channel_sum", &channel_sum);
    m.def("moments", &moments);
    m.def("finish_moments", &finish_moments);
    m.def("normalization_tables", &normalization_tables);
    m.def("normalization_gradients", &normalization_gradients);
    m.def("channel_sum_workspace", &cuda::channel_sum_workspace);
    m.def("pack_bits", &pack_bits);
    m.def("unpack_bits", &unpack_bits);
    m.def("use_openmp_of", &use_openmp_of);
    m.def("instruction_set", &cpu::instruction_set);
    m.def("use_instruction_set", &cpu::use_instruction_set);
    m.attr("checkpoint_interval") = checkpoint_interval;
    m.attr("with_cuda") = cuda::compiled();
    m.attr("cuda_toolkit") = cuda::toolkit();
    m.attr("cuda_architectures") = cuda::architectures();
    m.attr("compiler") = SNNFAST_COMPILER;
}
