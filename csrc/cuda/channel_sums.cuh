// Sums per channel on a GPU, in double and in an order that depends on nothing but the sizes: every block sums what its
// threads have, a part of each channel's sum; channel_sum_kernel then sums the parts.
#pragma once

#include "cuda/neurons.cuh"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Sums of what the threads of a block have: of each thread's Width neurons, Arrays values. The neurons of a thread are of
// one channel, or each of its own.
template <int Arrays, int Width, Channels channels>
struct ChannelSums {
    static constexpr int each = channels == Channels::own ? Width : 1;
    double partial[Arrays][threads_per_block * each];

    template <class S>
    __device__ void take(int array, const S (&values)[Width], const Walk& walk, const Seat<Width>& seat) {
        if (seat.rank >= walk.ranks) return;
        double mine[each];
#pragma unroll
        for (int i = 0; i < each; ++i) mine[i] = values[i];
#pragma unroll
        for (int w = each; w < Width; ++w) mine[0] += values[w];
        if (!walk.own) {
#pragma unroll
            for (int i = 1; i < each; ++i) mine[0] += mine[i];  // they are of one channel after all
        }
#pragma unroll
        for (int i = 0; i < each; ++i) {
            if (i > 0 && !walk.own) continue;
            const int at = walk.own ? seat.lane * each + i : seat.lane, c = seat.channel_of_tile(walk, i);
            const int members = static_cast<int>(walk.by_members.divisor);
            partial[array][c * members + seat.rank * walk.after + at - c * walk.after] = mine[i];
        }
    }

    // to: [Arrays, channels, parts]. All threads of the block must come here.
    __device__ void store(double* to, i64 all_channels, const Walk& walk, const Seat<Width>& seat) {
        const int thread = static_cast<int>(threadIdx.x), members = static_cast<int>(walk.by_members.divisor);
        __syncthreads();
        const int slots = walk.channels * members;
        for (int left = members; left > 1; left = (left + 1) / 2) {
            const int half = (left + 1) / 2;
            for (int slot = thread; slot < slots; slot += threads_per_block) {
                const int member = slot - static_cast<int>(walk.by_members.small(slot)) * members;
                if (member + half >= left) continue;
#pragma unroll
                for (int k = 0; k < Arrays; ++k) partial[k][slot] += partial[k][slot + half];
            }
            __syncthreads();
        }
        for (int c = thread; c < walk.channels && seat.first_channel + c < all_channels; c += threads_per_block) {
#pragma unroll
            for (int k = 0; k < Arrays; ++k)
                to[(k * all_channels + seat.first_channel + c) * walk.parts() + seat.part] = partial[k][c * members];
        }
    }
};

// Sums per channel of an array: values: [arrays, before, channels, after]; sums: [arrays, channels, pieces]. A block sums
// one piece of one channel, or, where neighbours are of different channels (`after` < 32), of as many channels as a warp
// has threads. The same kernel then sums the pieces.
template <class S>
__global__ void __launch_bounds__(threads_per_block)
    channel_sum_kernel(const S* values, double* sums, i64 before, i64 channels, i64 after, Divisor by_after) {
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
        for (i64 m = piece * ranks + rank; m < before * after; m += pieces * ranks) {
            const i64 b = by_after.quotient(m);
            sum += from[(b * channels + channel) * after + m - b * after];
        }
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

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
