// The neurons of one thread: where they lie, and what belongs to them and to their channels.
// Every CUDA kernel starts from here. The tests also run the kernels on the host, through a launch shim; keep these files
// free of CUDA's headers.
//
// A thread owns Width neighbouring neurons through all steps, with the state in registers; then those at the same place
// of another row (walk.h).
#pragma once

#include "cuda/access.cuh"
#include "cuda/walk.h"
#include "math/neuron.h"
#include "math/normalization.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Width neurons: of which outer, where in it, and their place in the flat order of what has no time.
struct Place {
    i64 outer;
    i64 inner;
    i64 flat;

    __device__ i64 in(const Strides& strides) const { return outer * strides.outer + inner; }
};

// Where a thread sits in its block, for all the rows that it walks down.
template <int Width>
struct Seat {
    i64 offset;      // of its first neuron in a row
    i64 first_row;   // beyond the last where the thread has nothing to do
    i64 rows_apart;  // of two that follow each other
    int first_channel;
    int lane;
    int rank;
    int part;  // of the sums of its channels

    __device__ explicit Seat(const Walk& walk) {
        const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
        const int piece = static_cast<int>(walk.by_tiles.small(block));
        const int tile = block - piece * static_cast<int>(walk.tiles());
        const int group = static_cast<int>(walk.by_cuts.small(tile));
        const int cut = tile - group * static_cast<int>(walk.by_cuts.divisor);
        rank = static_cast<int>(walk.by_lanes.small(thread));
        lane = thread - rank * walk.lanes;
        const i64 in_group = (i64(cut) * walk.lanes + lane) * Width;
        offset = group * walk.group_length + in_group;
        first_channel = group * walk.channels;
        part = cut * walk.pieces + piece;
        rows_apart = i64(walk.pieces) * walk.ranks;
        first_row = i64(piece) * walk.ranks + rank;
        if (rank >= walk.ranks || in_group >= walk.group_length || offset >= walk.row_length) first_row = walk.rows;
    }

    __device__ Place place(const Walk& walk, const Layout& layout, i64 row) const {
        Place place;
        place.flat = row * walk.row_length + offset;
        place.outer = layout.outer == 1 ? 0 : walk.inner.quotient(place.flat);
        place.inner = place.flat - place.outer * layout.inner;
        return place;
    }

    // The channel of its neuron w, and before that: which of the tile's.
    __device__ int channel_of_tile(const Walk& walk, int w) const {
        return static_cast<int>(walk.by_after.small(walk.own ? lane * Width + w : lane));
    }
    __device__ i64 channel(const Walk& walk, int w) const { return first_channel + channel_of_tile(walk, w); }
};

template <class S>
__device__ S channel_value(const void* array, S otherwise, i64 channel) {
    return array ? static_cast<const S*>(array)[channel] : otherwise;
}

template <int Width, class S>
__device__ void load_coefficients(Coefficients<S> (&k)[Width], const Dynamics& d, const ChannelCoefficients& given,
                                  const Walk& walk, const Seat<Width>& seat) {
    const Coefficients<S> shared{S(d.leak), S(d.gain), S(d.drive), S(d.threshold)};
    fill(k, shared);
    if (!(given.threshold || given.leak || given.gain || given.drive) || seat.first_row >= walk.rows) return;
#pragma unroll
    for (int w = 0; w < Width; ++w) {
        const i64 channel = seat.channel(walk, w);
        k[w].leak = channel_value<S>(given.leak, shared.leak, channel);
        k[w].gain = channel_value<S>(given.gain, shared.gain, channel);
        k[w].drive = channel_value<S>(given.drive, shared.drive, channel);
        k[w].threshold = channel_value<S>(given.threshold, shared.threshold, channel);
    }
}

template <int Width, class S>
__device__ void load_state(S (&to)[Width], const void* from, S otherwise, i64 flat) {
    if (from)
        load<Width>(to, static_cast<const S*>(from) + flat);
    else
        fill(to, otherwise);
}

template <int Width, class S>
__device__ void store_state(void* to, const S (&from)[Width], i64 flat) {
    if (to) store<Width>(static_cast<S*>(to) + flat, from);
}

// How currents are read: as they are, or normalized, with a residual where there is one. A held current is the same
// address at every step, which the caches answer. Channels: whether the neurons of a thread are of one channel.
template <class Storage, int Width, Currents How, Channels channels>
struct CurrentReader {
    using S = State<Storage>;
    static constexpr int normalizers = How != Currents::plain && channels == Channels::own ? Width : 1;
    const Storage* x;
    const Storage* residual = nullptr;
    const Strides& x_strides;
    const Strides& residual_strides;
    const StepStride<Storage, Width> step;
    const StepStride<Storage, Width> residual_step;
    const void* const first_x;
    const void* const first_residual;
    const bool normalized;
    Normalizer<S> n[normalizers];

    template <class Call>
    __device__ CurrentReader(const Call& call, const Walk& walk, const Seat<Width>& seat)
        : x_strides(call.layout.current), residual_strides(call.layout.residual), step(x_strides),
          residual_step(residual_strides), first_x(call.current), first_residual(call.normalization.residual),
          normalized(How == Currents::normalized || (How == Currents::any && call.normalization.mean)) {
        if (!normalized || seat.first_row >= walk.rows) return;
        const Normalization& given = call.normalization;
#pragma unroll
        for (int i = 0; i < normalizers; ++i) {
            const i64 channel = seat.channel(walk, i);
            n[i].mean = static_cast<const S*>(given.mean)[channel];
            n[i].scale = static_cast<const S*>(given.scale)[channel];
            n[i].shift = static_cast<const S*>(given.shift)[channel];
            n[i].through_mean = channel_value<S>(given.through_mean, 0, channel);
            n[i].through_variance = channel_value<S>(given.through_variance, 0, channel);
        }
    }

    __device__ void enter(const Place& place) {
        x = static_cast<const Storage*>(first_x) + place.in(x_strides);
        if (How != Currents::plain && normalized && first_residual)
            residual = static_cast<const Storage*>(first_residual) + place.in(residual_strides);
    }

    __device__ const Normalizer<S>& of(int w) const { return n[normalizers == 1 ? 0 : w]; }

    // The elements of the steps from `first`, of which the first `length` are wanted: all loads, and nothing that waits
    // for them.
    template <int Steps>
    __device__ void fetch(Pack<Storage, Width> (&to)[Steps], int first, int length) const {
        load_steps(to, step.at_any(x, first), step, length);
    }

    // Elements to the currents that the neurons integrate. A residual is read a few steps at a time.
    template <int Steps>
    __device__ void to_currents(S (&x)[Steps][Width], int first, int length) const {
        if (How == Currents::plain || !normalized) return;
#pragma unroll
        for (int a = 0; a < Steps; ++a) {
#pragma unroll
            for (int w = 0; w < Width; ++w) x[a][w] = normalize(of(w), x[a][w]);
        }
        if (residual) add_residual(x, first, length);
    }

    template <int Steps>
    __device__ void add_residual(S (&x)[Steps][Width], int first, int length) const {
        constexpr int together = Steps < steps_ahead ? Steps : steps_ahead;
#pragma unroll
        for (int group = 0; group < Steps; group += together) {
            if (group >= length) continue;
            Pack<Storage, Width> more[together];
            load_steps(more, residual_step.at_any(residual, first + group), residual_step, length - group);
#pragma unroll
            for (int a = 0; a < together; ++a) {
#pragma unroll
                for (int w = 0; w < Width; ++w) x[group + a][w] = x[group + a][w] + element(more[a], w);
            }
        }
    }

    // x - mean.
    __device__ void centered(S (&to)[Width], const Pack<Storage, Width>& elements) const {
        widen_pack(to, elements);
#pragma unroll
        for (int w = 0; w < Width; ++w) to[w] = to[w] - of(w).mean;
    }
};

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
