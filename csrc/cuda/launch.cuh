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
#include "cuda/walk.h"

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

inline dim3 blocks_of(const Walk& walk, const Layout& layout) {
    if (layout.steps > 0x7fffffff) throw std::runtime_error("snnfast: more steps than a kernel counts");
    const i64 blocks = walk.tiles() * walk.pieces;
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
           (layout.outer == 1 || strides.outer % width == 0) && (width == 1 || strides.step / width <= 0xffffffff);
}

template <class S>
bool state_fits(int width, std::initializer_list<const void*> arrays) {
    const i64 bytes = sizeof(S) * width < access_bytes ? sizeof(S) * width : access_bytes;
    for (const void* data : arrays)
        if (reinterpret_cast<unsigned long long>(data) % bytes != 0) return false;
    return true;
}

// Whether Width neurons of one thread can be read and written together.
template <class Storage>
bool is_wide(int width, const ForwardCall& call) {
    const Layout& layout = call.layout;
    return layout.inner % width == 0 && walkable(layout, width) &&
           fits<Storage>(width, call.current, layout.current, layout) &&
           fits<Storage>(width, call.normalization.residual, layout.residual, layout) &&
           fits<Storage>(width, call.spikes, layout.spikes, layout) &&
           state_fits<State<Storage>>(width, {call.initial, call.last, call.potential, call.checkpoints});
}

template <class Storage>
bool is_wide(int width, const BackwardCall& call) {
    using S = State<Storage>;
    const Layout& layout = call.layout;
    return layout.inner % width == 0 && walkable(layout, width) &&
           fits<Storage>(width, call.current, layout.current, layout) &&
           fits<Storage>(width, call.normalization.residual, layout.residual, layout) &&
           fits<Storage>(width, call.grad_spikes, layout.grad_spikes, layout) &&
           fits<S>(width, call.grad_potential, layout.grad_potential, layout) &&
           fits<Storage>(width, call.grad_current, layout.grad_current, layout) &&
           fits<Storage>(width, call.grad_residual, layout.grad_current, layout) &&
           state_fits<S>(width, {call.initial, call.checkpoints, call.grad_last, call.grad_initial, call.grad_threshold,
                                 call.grad_tau});
}

template <class Storage>
bool is_wide(int width, const MomentsCall& call) {
    const Layout& layout = call.layout;
    return layout.inner % width == 0 && walkable(layout, width) &&
           fits<Storage>(width, call.current, layout.current, layout);
}

inline Pass pass_of(const BackwardCall& call) {
    if (!call.grad_spikes || call.layout.held) return Pass::any;
    if (call.sums) return call.grad_current || call.grad_residual ? Pass::any : Pass::sums;
    return call.grad_current && (!call.normalization.mean || call.normalization.through_mean) ? Pass::gradients
                                                                                              : Pass::any;
}

// The sums per channel of the parts that the blocks of a launch left in its workspace: [2, channels, parts].
void sum_parts(void* workspace, double* sums, i64 channels, i64 parts, void* stream);

inline i64 bytes_of_parts(const Layout& layout, int width) {
    return 2 * layout.channels * walk_of(layout, width).parts() * i64(sizeof(double));
}

template <class Storage>
struct Launcher {
    using S = State<Storage>;

    static void forward(const ForwardCall& call, void* stream);
    static void backward(const BackwardCall& call, void* stream);
    static void moments(const MomentsCall& call, void* stream);
    static void statistics(const StatisticsCall& call, void* stream);

    // Enough for any width that a kernel may have.
    static i64 sums_workspace(const Layout& layout) {
        i64 most = bytes_of_parts(layout, 1);
        for (int width : {backward_width<Storage>, forward_width<Storage>}) {
            if (layout.inner % width != 0 || !walkable(layout, width)) continue;
            const i64 bytes = bytes_of_parts(layout, width);
            most = bytes > most ? bytes : most;
        }
        return most;
    }
};

template <class Storage>
void Launcher<Storage>::forward(const ForwardCall& call, void* stream) {
    constexpr Direction direction = Direction::forward;
    Question asked;
    asked.wide = is_wide<Storage>(forward_width<Storage>, call);
    const Walk walk = walk_of(call.layout, asked.wide ? forward_width<Storage> : 1);
    asked.extras = call.potential || call.dynamics.delay || call.dynamics.late;
    asked.normalized = call.normalization.mean;
    asked.dynamics = policy_of(call.dynamics);
    asked.channels = walk.own ? Channels::own : Channels::shared;
    with_variant<CudaVariants<Storage, direction>>(
        variant(direction, cuda_backend<Storage>(direction), asked), [&](auto known) {
            constexpr Variant v = decltype(known)::value;
            using D = typename DynamicsPolicy<v.dynamics>::template of<S>;
            launch(forward_kernel<Storage, v.width, D, v.currents, v.channels>, blocks_of(walk, call.layout), stream,
                   call, walk);
        });
}

template <class Storage>
void Launcher<Storage>::backward(const BackwardCall& call, void* stream) {
    constexpr Direction direction = Direction::backward;
    const Layout& layout = call.layout;
    Question asked;
    asked.wide = is_wide<Storage>(backward_width<Storage>, call);
    asked.extras =
        call.dynamics.delay || call.dynamics.late || call.grad_potential || call.grad_threshold || call.grad_tau;
    asked.normalized = call.normalization.mean;
    asked.dynamics = policy_of(call.dynamics);
    asked.surrogate = call.surrogate.shape;
    asked.pass = pass_of(call);
    const int width = asked.wide ? backward_width<Storage> : 1, short_width = short_backward_width<Storage>;
    const bool own = asked.normalized && walk_of(layout, width).own;
    asked.channels = own ? Channels::own : Channels::shared;
    asked.middling = layout.steps <= middle_block;
    asked.brief =
        layout.steps <= steps_ahead &&
        (own || (is_wide<Storage>(short_width, call) && !(asked.normalized && walk_of(layout, short_width).own)));
    with_variant<CudaVariants<Storage, direction>>(
        variant(direction, cuda_backend<Storage>(direction), asked), [&](auto known) {
            constexpr Variant v = decltype(known)::value;
            using D = typename DynamicsPolicy<v.dynamics>::template of<S>;
            using Surrogate = typename SurrogateOf<v.surrogate>::type;
            const Walk walk = walk_of(layout, v.width);
            launch(backward_kernel<Storage, v.width, v.block, Surrogate, D, v.currents, v.channels, v.pass, v.extras>,
                   blocks_of(walk, call.layout), stream, call, walk);
            if (call.sums) sum_parts(call.workspace, call.sums, layout.channels, walk.parts(), stream);
        });
}

template <class Storage>
void Launcher<Storage>::moments(const MomentsCall& call, void* stream) {
    constexpr int width = forward_width<Storage>;
    const bool wide = is_wide<Storage>(width, call);
    const Walk walk = walk_of(call.layout, wide ? width : 1);
    if (!wide)
        launch(moments_kernel<Storage, 1, Channels::shared>, blocks_of(walk, call.layout), stream, call, walk);
    else if (walk.own)
        launch(moments_kernel<Storage, width, Channels::own>, blocks_of(walk, call.layout), stream, call, walk);
    else
        launch(moments_kernel<Storage, width, Channels::shared>, blocks_of(walk, call.layout), stream, call, walk);
    sum_parts(call.workspace, call.sums, call.layout.channels, walk.parts(), stream);
}

template <class Storage>
void Launcher<Storage>::statistics(const StatisticsCall& call, void* stream) {
    launch(statistics_kernel<Storage>, blocks_of_channels(call.layout.channels), stream, call);
}

}  // namespace cuda
}  // namespace snnfast
