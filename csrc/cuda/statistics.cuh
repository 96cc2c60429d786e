// The CUDA kernels of batch normalization: the sums of what neurons contribute to the moments of their channels, and the
// arithmetic of a channel between the passes.
#pragma once

#include "cuda/channel_sums.cuh"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// The sums, relative to a neuron's first current, of the steps after it.
template <class Storage, int Width>
__device__ void sum_steps(State<Storage> (&first)[Width], State<Storage> (&sum)[Width],
                          State<Storage> (&squares)[Width], const Storage* x, const Strides& strides, int steps) {
    const StepStride<Storage, Width> stride(strides);
    fill(sum, State<Storage>(0));
    fill(squares, State<Storage>(0));
    for (int from = 0; from < steps; from += moments_ahead) {
        Pack<Storage, Width> more[moments_ahead];
        load_steps(more, stride.at_any(x, from), stride, steps - from);
        if (from == 0) widen_pack(first, more[0]);
#pragma unroll
        for (int a = 0; a < moments_ahead; ++a) {
            if (from + a >= steps) continue;
#pragma unroll
            for (int w = 0; w < Width; ++w) {
                const State<Storage> d = element(more[a], w) - first[w];
                sum[w] += d;
                squares[w] = multiply_add(d, d, squares[w]);
            }
        }
    }
}

// What the neurons contribute to the moments of their channels.
template <class Storage, int Width, Channels channels>
__global__ void __launch_bounds__(threads_per_block) moments_kernel(const MomentsCall call, const Walk walk) {
    using S = State<Storage>;
    constexpr int pivots = channels == Channels::own ? Width : 1;
    const Layout& layout = call.layout;
    const Seat<Width> seat(walk);
    const int steps = layout.held ? 1 : static_cast<int>(layout.steps);
    S pivot[pivots], means[Width], squares[Width];
    fill(pivot, S(0));
    fill(means, S(0));
    fill(squares, S(0));
    if (seat.first_row < walk.rows) {
#pragma unroll
        for (int i = 0; i < pivots; ++i)
            pivot[i] = widen(static_cast<const Storage*>(call.current)[pivot_offset(layout, seat.channel(walk, i))]);
    }
    for (i64 row = seat.first_row; row < walk.rows; row += seat.rows_apart) {
        S first[Width], sum[Width], square[Width];
        sum_steps(first, sum, square,
                  static_cast<const Storage*>(call.current) + seat.place(walk, layout, row).in(layout.current),
                  layout.current, steps);
#pragma unroll
        for (int w = 0; w < Width; ++w) {
            const Contribution<S> mine =
                contribution(first[w], pivot[pivots == 1 ? 0 : w], sum[w], square[w], S(steps));
            means[w] += mine.mean;
            squares[w] += mine.squares;
        }
    }
    __shared__ ChannelSums<2, Width, channels> sums;
    sums.take(0, means, walk, seat);
    sums.take(1, squares, walk, seat);
    sums.store(static_cast<double*>(call.workspace), layout.channels, walk, seat);
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
