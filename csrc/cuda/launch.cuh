// Chooses a kernel and launches it. Instantiated once per storage dtype, each in a file of its own (instantiate/),
// so that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

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

private:
    template <int Width, class D, Currents How>
    static void run_forward(const ForwardCall& call, void* stream) {
        launch(forward_kernel<Storage, Width, D, How>, blocks_for(call.layout, Width), stream, call);
    }

    template <int Width, int Block, class Surrogate, class D, Currents How, bool Extras>
    static void run_backward(const BackwardCall& call, void* stream) {
        const dim3 blocks = blocks_for(call.layout, Width);
        launch(backward_kernel<Storage, Width, Block, Surrogate, D, How, Extras>, blocks, stream, call);
    }

    template <class D>
    static void run_wide_forward(const ForwardCall& call, void* stream) {
        if (call.normalization.mean)
            run_forward<forward_width<Storage>, D, Currents::normalized>(call, stream);
        else
            run_forward<forward_width<Storage>, D, Currents::plain>(call, stream);
    }

    template <class D>
    static void run_specialised_backward(const BackwardCall& call, void* stream) {
        constexpr int width = backward_width<Storage>, block = backward_block;
        if constexpr (normalized_backward_fits<Storage>)
            if (call.normalization.mean)
                return run_backward<width, block, FastSigmoid, D, Currents::normalized, false>(call, stream);
        if (call.layout.steps <= steps_ahead)
            run_backward<width, steps_ahead, FastSigmoid, D, Currents::plain, false>(call, stream);
        else
            run_backward<width, block, FastSigmoid, D, Currents::plain, false>(call, stream);
    }
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
    if (!wide)
        run_forward<1, General<S>, Currents::any>(call, stream);
    else if (!extras && is_hard_detached(call.dynamics))
        run_wide_forward<HardDetached<S>>(call, stream);
    else if (!extras && is_soft_attached(call.dynamics))
        run_wide_forward<SoftAttached<S>>(call, stream);
    else
        run_wide_forward<General<S>>(call, stream);
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
    const bool fast_sigmoid = call.surrogate.shape == Shape::fast_sigmoid;
    const bool normalized = call.normalization.mean;
    const bool fits_registers = normalized_backward_fits<Storage> || !normalized;
    if (wide && fast_sigmoid && !extras && fits_registers) {
        if (is_hard_detached(call.dynamics)) return run_specialised_backward<HardDetached<S>>(call, stream);
        if (is_soft_attached(call.dynamics)) return run_specialised_backward<SoftAttached<S>>(call, stream);
        if constexpr (normalized_backward_fits<Storage>)  // where else normalized currents do not come here
            if (normalized)
                return run_backward<width, backward_block, FastSigmoid, General<S>, Currents::normalized, false>(
                    call, stream);
    }
    // One neuron a thread serves what cannot be read wide, the extras, and normalized currents before another surrogate
    // than the paper's: wide kernels for those would lengthen the build by a half, for calls that are few.
    with_shape(call.surrogate.shape, [&](auto shape) {
        using Surrogate = decltype(shape);
        if (wide && !extras && !normalized)
            run_backward<width, backward_block, Surrogate, General<S>, Currents::plain, false>(call, stream);
        else
            run_backward<1, backward_block, Surrogate, General<S>, Currents::any, true>(call, stream);
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
