// The CUDA kernels of batch normalization: what neurons contribute to the moments of their channels, sums per channel,
// and the arithmetic of a channel between the passes.
#pragma once

#include "cuda/neurons.cuh"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Sums per channel, in an order that depends on nothing but the sizes: every block sums a fixed share of a channel
// into the workspace [arrays, channels, pieces]; the same kernel then sums the pieces.
//
// values: [arrays, before, channels, after]; sums: [arrays, channels, pieces]. A block sums one piece of one channel,
// or, where neighbours are of different channels (`after` < 32), of as many channels as a warp has threads.
template <class S>
__global__ void __launch_bounds__(threads_per_block)
    channel_sum_kernel(const S* values, double* sums, i64 before, i64 channels, i64 after) {
    const i64 piece = blockIdx.y;
    const i64 pieces = gridDim.y;
    const bool narrow = after < warp;
    const i64 groups = narrow ? (channels + warp - 1) / warp : channels;
    const i64 array = blockIdx.x / groups;
    const i64 group = blockIdx.x % groups;
    const i64 lane = narrow ? threadIdx.x % warp : 0;
    const i64 rank = narrow ? threadIdx.x / warp : threadIdx.x;
    const i64 ranks = narrow ? threads_per_block / warp : threads_per_block;
    const i64 channel = narrow ? group * warp + lane : group;
    const S* const from = values + array * before * channels * after;
    double sum = 0;
    if (channel < channels)
        for (i64 m = piece * ranks + rank; m < before * after; m += pieces * ranks)
            sum += from[(m / after * channels + channel) * after + m % after];
    __shared__ double partial[threads_per_block];
    partial[threadIdx.x] = sum;
    __syncthreads();
    const int last = narrow ? warp : 1;
    for (int half = threads_per_block / 2; half >= last; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    if (static_cast<int>(threadIdx.x) < last && channel < channels)
        sums[(array * channels + channel) * pieces + piece] = partial[threadIdx.x];
}

// What every neuron contributes to its channel's moments.
template <class Storage, int Width>
__global__ void __launch_bounds__(threads_per_block) moments_kernel(const MomentsCall call) {
    using S = State<Storage>;
    const Layout& layout = call.layout;
    Place place;
    if (!find_place<Width>(layout, place)) return;
    const i64 steps = layout.held ? 1 : layout.steps;
    const Storage* const x = static_cast<const Storage*>(call.current) + place.in(layout.current);
    S first[Width], sum[Width], squares[Width];
    load<Width>(first, x);
    fill(sum, S(0));
    fill(squares, S(0));
    for (i64 group = 1; group < steps; group += steps_ahead) {
        S more[steps_ahead][Width];
#pragma unroll
        for (int a = 0; a < steps_ahead; ++a)
            if (group + a < steps) load<Width>(more[a], x + (group + a) * layout.current.step);
#pragma unroll
        for (int a = 0; a < steps_ahead; ++a) {
            if (group + a >= steps) continue;
#pragma unroll
            for (int w = 0; w < Width; ++w) {
                const S d = more[a][w] - first[w];
                sum[w] += d;
                squares[w] += d * d;
            }
        }
    }
#pragma unroll
    for (int w = 0; w < Width; ++w) {
        const i64 channel = (place.flat + w) / layout.channel_stride % layout.channels;
        const S pivot = widen(static_cast<const Storage*>(call.current)[pivot_offset(layout, channel)]);
        const Contribution<S> mine = contribution(first[w], pivot, sum[w], squares[w], S(steps));
        sum[w] = mine.mean;
        squares[w] = mine.squares;
    }
    store_state(call.neurons, sum, place.flat);
    store_state(static_cast<S*>(call.neurons) + layout.neurons(), squares, place.flat);
}

// The arithmetic between the passes: a thread per channel.
__device__ inline i64 channel_of_thread() { return static_cast<i64>(blockIdx.x) * threads_per_block + threadIdx.x; }

template <class Storage>
__global__ void __launch_bounds__(threads_per_block) statistics_kernel(const StatisticsCall call) {
    const i64 channel = channel_of_thread();
    if (channel < call.layout.channels) statistics_step<Storage>(call, channel);
}

template <class S>
__global__ void __launch_bounds__(threads_per_block) normalization_kernel(const NormalizationCall call) {
    const i64 channel = channel_of_thread();
    if (channel < call.channels) normalization_step<S>(call, channel);
}

template <class S>
__global__ void __launch_bounds__(threads_per_block)
    normalization_gradients_kernel(const NormalizationGradientsCall call) {
    const i64 channel = channel_of_thread();
    if (channel < call.channels) normalization_gradients_step<S>(call, channel);
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
