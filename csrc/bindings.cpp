// The Python module snnfast._core. It knows no torch: a call arrives as a record with named fields, whose tensors are
// asked for nothing but their address. Shapes, dtypes and devices were checked above.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <type_traits>
#include <vector>

#include "calls.h"
#include "cpu/threads.h"
#include "cuda/backend.h"
#include "records.h"

namespace py = pybind11;

namespace snnfast {
namespace {

using Pair = std::array<i64, 2>;

Strides strides(const Pair& pair) { return {pair[0], pair[1]}; }

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
                       bool soft, bool attached, bool fire_on_equal, bool delay, bool input_decays, bool late) {
    return {leak, gain, drive, threshold, reset_value, leaky, soft, attached, fire_on_equal, delay, input_decays, late};
}

Surrogate make_surrogate(int shape, double gamma, double beta) { return {static_cast<Shape>(shape), gamma, beta}; }

template <class... Types>
void add_records(py::module_& m) {
    (Record<Types>::add_to(m), ...);
}

// The names of the CUDA kernels that are built for a dtype in one direction.
std::vector<std::string> variant_names(int direction_code, int dtype) {
    const auto direction = static_cast<Direction>(direction_code);
    std::vector<std::string> names;
    with_storage(static_cast<DType>(dtype), [&](auto storage) {
        const Variants built = variants(direction, cuda_backend<decltype(storage)>(direction));
        for (int i = 0; i < built.count; ++i) names.push_back(name(direction, static_cast<DType>(dtype), built.of[i]));
    });
    return names;
}

// The two backends of the core (snnfast.backends.Backend).

struct Cpu {
    int threads;

    template <class Call>
    void run(void (*kernel)(const Call&, int), const Call& call) const {
        const py::gil_scoped_release release;
        kernel(call, threads);
    }
};

struct Cuda {
    int device;
    void* stream;

    template <class Call>
    void run(void (*kernel)(const Call&, int, void*), const Call& call) const {
        const py::gil_scoped_release release;
        kernel(call, device, stream);
    }
};

// A method of both backends: it reads a record, outside of which nothing is known of Python, and runs a kernel on it.
template <class Type, class Call>
void add_method(py::class_<Cpu>& on_cpu, py::class_<Cuda>& on_cuda, const char* name, Call (*read)(const Record<Type>&),
                void (*on_threads)(const Call&, int), void (*on_stream)(const Call&, int, void*)) {
    const auto add = [&](auto& backend, auto kernel) {
        using Where = typename std::remove_reference_t<decltype(backend)>::type;
        backend.def(
            name, [=](const Where& where, py::handle call) { where.run(kernel, read(Record<Type>(call))); },
            py::arg("call"));
    };
    add(on_cpu, on_threads);
    add(on_cuda, on_stream);
}

}  // namespace
}  // namespace snnfast

PYBIND11_MODULE(SNNFAST_MODULE, m) {
    using namespace snnfast;
    m.doc() = "Compiled kernels of snnfast; internal, called by snnfast.backends.";
    // Local to the module: the tests load a second one, with the CUDA kernels compiled for the host.
    const py::module_local local;
    py::class_<Layout>(m, "Layout", local)
        .def(py::init(&make_layout), py::kw_only(), py::arg("extent"), py::arg("channels"), py::arg("held"),
             py::arg("residual_held"), py::arg("current"), py::arg("residual"), py::arg("spikes"),
             py::arg("grad_spikes"), py::arg("grad_potential"), py::arg("grad_current"));
    py::class_<Dynamics>(m, "Dynamics", local)
        .def(py::init(&make_dynamics), py::kw_only(), py::arg("leak"), py::arg("gain"), py::arg("drive"),
             py::arg("threshold"), py::arg("reset_value"), py::arg("leaky"), py::arg("soft"), py::arg("attached"),
             py::arg("fire_on_equal"), py::arg("delay"), py::arg("input_decays"), py::arg("late"));
    py::class_<Surrogate>(m, "Surrogate", local)
        .def(py::init(&make_surrogate), py::kw_only(), py::arg("shape"), py::arg("gamma"), py::arg("beta"));

    add_records<ChannelCoefficientsRecord, ForwardRecord, BackwardRecord, GradientThroughRecord, ChannelSumRecord,
                MomentsRecord, StatisticsRecord, NormalizationRecord, NormalizationGradientsRecord, PackBitsRecord,
                UnpackBitsRecord>(m);

    py::class_<Cpu> on_cpu(m, "Cpu", local);
    on_cpu.def(py::init([](int threads) { return Cpu{threads}; }), py::arg("threads"));
    on_cpu.def("sums_workspace", [](const Cpu&, int dtype, const Layout& layout) {
        return cpu::sums_workspace(static_cast<DType>(dtype), layout);
    });
    on_cpu.def("channel_sum_workspace", [](const Cpu&, i64, i64, i64, i64) { return i64(0); });
    py::class_<Cuda> on_cuda(m, "Cuda", local);
    on_cuda.def(
        py::init([](int device, unsigned long long stream) { return Cuda{device, reinterpret_cast<void*>(stream)}; }),
        py::arg("device"), py::arg("stream"));
    on_cuda.def("sums_workspace", [](const Cuda&, int dtype, const Layout& layout) {
        return cuda::sums_workspace(static_cast<DType>(dtype), layout);
    });
    on_cuda.def("channel_sum_workspace", [](const Cuda&, i64 arrays, i64 before, i64 channels, i64 after) {
        return cuda::channel_sum_workspace(arrays, before, channels, after);
    });

    add_method(on_cpu, on_cuda, "forward", forward_call, cpu::forward, cuda::forward);
    add_method(on_cpu, on_cuda, "backward", backward_call, cpu::backward, cuda::backward);
    add_method(on_cpu, on_cuda, "channel_sum", channel_sum_call, cpu::channel_sum, cuda::channel_sum);
    add_method(on_cpu, on_cuda, "moments", moments_call, cpu::moments, cuda::moments);
    add_method(on_cpu, on_cuda, "statistics", statistics_call, cpu::statistics, cuda::statistics);
    add_method(on_cpu, on_cuda, "normalization", normalization_call, cpu::normalization, cuda::normalization);
    add_method(on_cpu, on_cuda, "normalization_gradients", normalization_gradients_call, cpu::normalization_gradients,
               cuda::normalization_gradients);
    add_method(on_cpu, on_cuda, "pack_bits", pack_bits_call, cpu::pack_bits, cuda::pack_bits);
    add_method(on_cpu, on_cuda, "unpack_bits", unpack_bits_call, cpu::unpack_bits, cuda::unpack_bits);

    on_cpu.def(
        "gradient_through",
        [](const Cpu& where, py::handle call) {
            where.run(cpu::gradient_through, gradient_through_call(Record<GradientThroughRecord>(call)));
        },
        py::arg("call"));

    m.def("variant_names", &variant_names, py::arg("direction"), py::arg("dtype"));
    m.def("use_openmp_of", &use_openmp_of, py::arg("library"));
    m.def("instruction_set", &cpu::instruction_set);
    m.def("use_instruction_set", &cpu::use_instruction_set, py::arg("name"));
    m.def("streaming_threshold", &cpu::streaming_threshold);
    m.def("use_streaming_threshold", &cpu::use_streaming_threshold, py::arg("bytes"));
    m.attr("checkpoint_interval") = checkpoint_interval;
    m.attr("with_cuda") = cuda::compiled();
    m.attr("cuda_toolkit") = cuda::toolkit();
    m.attr("cuda_architectures") = cuda::architectures();
    m.attr("compiler") = SNNFAST_COMPILER;
}
