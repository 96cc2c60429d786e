// Chooses a kernel and launches it. Instantiated once per storage dtype, each in a file of its own (instantiate/),
// so that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/backend.h"
#include "cuda/backward.cuh"
#include "cuda/forward.cuh"
#include "cuda/statistics.cuh"

namespace snnfast {
namespace cuda {

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string("snnfast: ") + what + ": " + cudaGetErrorString(status));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, void* stream, const Arguments&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = dim3(threads_per_block);
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "kernel launch");
}

inline dim3 blocks_for(const Layout& layout, int width) {
    const i64 threads = (layout.neurons() + width - 1) / width;
    const i64 blocks = (threads + threads_per_block - 1) / threads_per_block;
    if (blocks > 0x7fffffff) throw std::runtime_error("snnfast: more neurons than one launch can address");
    return dim3(static_cast<unsigned>(blocks));
}

inline dim3 blocks_of_channels(i64 channels) {
    return dim3(static_cast<unsigned>((channels + threads_per_block - 1) / threads_per_block));
}

// Whether rows of `data` start on a multiple of Width elements.
template <class T>
bool fits(int width, const void* data, const Strides& strides, const Layout& layout) {
    const i64 bytes = sizeof(T) * width < access_bytes ? sizeof(T) * width : access_bytes;
    return reinterpret_cast<unsigned long long>(data) % bytes == 0 && strides.step % width == 0 &&
           (layout.outer == 1 || strides.outer % width == 0);
}

template <class S>
bool state_fits(int width, std::initializer_list<const void*> arrays) {
    const i64 bytes = sizeof(S) * width < access_bytes ? sizeof(S) * width : access_bytes;
    for (const void* data : arrays)
        if (reinterpret_cast<unsigned long long>(data) % bytes != 0) return false;
    return true;
}

template <class Storage>
struct Launcher {
    using S = State<Storage>;

    static void forward(const ForwardCall& call, void* stream);
    static void backward(const BackwardCall& call, void* stream);
    static void moments(const MomentsCall& call, void* stream);
    static void statistics(const StatisticsCall& call, void* stream);
};

template <class Storage>
void Launcher<Storage>::forward(const ForwardCall& call, void* stream) {
    const Layout& layout = call.layout;
    constexpr int width = forward_width<Storage>;
    const bool wide = layout.inner % width == 0 && fits<Storage>(width, call.current, layout.current, layout) &&
                      fits<Storage>(width, call.normalization.residual, layout.residual, layout) &&
                      fits<Storage>(width, call.spikes, layout.spikes, layout) &&
                      state_fits<S>(width, {call.initial, call.last, call.potential, call.checkpoints});
    const bool extras = call.potential || call.dynamics.delay;
    const Question asked{wide, false, extras, call.normalization.mean != nullptr, policy_of(call.dynamics), {}};
    constexpr Direction direction = Direction::forward;
    with_variant<CudaVariants<Storage, direction>>(
        variant(direction, cuda_backend<Storage>(direction), asked), [&](auto known) {
            constexpr Variant v = decltype(known)::value;
            using D = typename DynamicsPolicy<v.dynamics>::template of<S>;
            launch(forward_kernel<Storage, v.width, D, v.currents>, blocks_for(layout, v.width), stream, call);
        });
}

template <class Storage>
void Launcher<Storage>::backward(const BackwardCall& call, void* stream) {
    const Layout& layout = call.layout;
    constexpr int width = backward_width<Storage>;
    const bool wide = layout.inner % width == 0 && fits<Storage>(width, call.current, layout.current, layout) &&
                      fits<Storage>(width, call.normalization.residual, layout.residual, layout) &&
                      fits<Storage>(width, call.grad_spikes, layout.grad_spikes, layout) &&
                      fits<S>(width, call.grad_potential, layout.grad_potential, layout) &&
                      fits<Storage>(width, call.grad_current, layout.grad_current, layout) &&
                      fits<Storage>(width, call.grad_residual, layout.grad_current, layout) &&
                      state_fits<S>(width, {call.initial, call.checkpoints, call.grad_last, call.grad_initial,
                                            call.grad_threshold, call.grad_tau, call.sum_gradient, call.sum_product});
    const bool extras = call.dynamics.delay || call.grad_potential || call.grad_threshold || call.grad_tau;
    const bool normalized = call.normalization.mean, brief = layout.steps <= steps_ahead;
    const Question asked{wide, brief, extras, normalized, policy_of(call.dynamics), call.surrogate.shape};
    constexpr Direction direction = Direction::backward;
    with_variant<CudaVariants<Storage, direction>>(
        variant(direction, cuda_backend<Storage>(direction), asked), [&](auto known) {
            constexpr Variant v = decltype(known)::value;
            using D = typename DynamicsPolicy<v.dynamics>::template of<S>;
            using Surrogate = typename SurrogateOf<v.surrogate>::type;
            launch(backward_kernel<Storage, v.width, v.block, Surrogate, D, v.currents, v.extras>,
                   blocks_for(layout, v.width), stream, call);
        });
}

template <class Storage>
void Launcher<Storage>::moments(const MomentsCall& call, void* stream) {
    const Layout& layout = call.layout;
    constexpr int width = forward_width<Storage>;
    const void* const squares = static_cast<S*>(call.neurons) + layout.neurons();
    if (layout.inner % width == 0 && fits<Storage>(width, call.current, layout.current, layout) &&
        state_fits<S>(width, {call.neurons, squares}))
        launch(moments_kernel<Storage, width>, blocks_for(layout, width), stream, call);
    else
        launch(moments_kernel<Storage, 1>, blocks_for(layout, 1), stream, call);
}

template <class Storage>
void Launcher<Storage>::statistics(const StatisticsCall& call, void* stream) {
    launch(statistics_kernel<Storage>, blocks_of_channels(call.layout.channels), stream, call);
}

}  // namespace cuda
}  // namespace snnfast
