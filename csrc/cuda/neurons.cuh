// The neurons of one thread: where they lie, how their values are read and written, and how their currents are read.
// Every CUDA kernel starts from here. The tests also run the kernels on the host, through a launch shim; keep these files
// free of CUDA's headers.
//
// A thread owns Width neighbouring neurons through all steps, with the state in registers.
#pragma once

#include "cuda/tuning.h"
#include "math/neuron.h"
#include "math/normalization.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Width elements moved by one access of up to 16 bytes.
template <class Storage, int Width>
struct alignas(sizeof(Storage) * Width < access_bytes ? sizeof(Storage) * Width : access_bytes) Access {
    Storage element[Width];
};

template <int Width, class Storage>
__device__ void load(State<Storage> (&to)[Width], const Storage* from) {
    const auto together = *reinterpret_cast<const Access<Storage, Width>*>(from);
#pragma unroll
    for (int w = 0; w < Width; ++w) to[w] = widen(together.element[w]);
}

template <int Width, class Storage>
__device__ void store(Storage* to, const State<Storage> (&from)[Width]) {
    Access<Storage, Width> together;
#pragma unroll
    for (int w = 0; w < Width; ++w) together.element[w] = Narrow<Storage>::from(from[w]);
    *reinterpret_cast<Access<Storage, Width>*>(to) = together;
}

template <class S, int Width>
__device__ void fill(S (&to)[Width], S value) {
#pragma unroll
    for (int w = 0; w < Width; ++w) to[w] = value;
}

// The neurons of one thread.
struct Place {
    i64 outer;
    i64 inner;  // of the first of Width neurons
    i64 flat;

    __device__ i64 in(const Strides& strides) const { return outer * strides.outer + inner; }
};

template <int Width>
__device__ bool find_place(const Layout& layout, Place& place) {
    const i64 thread = static_cast<i64>(blockIdx.x) * threads_per_block + threadIdx.x;
    place.flat = thread * Width;
    if (place.flat >= layout.outer * layout.inner) return false;
    place.outer = layout.outer == 1 ? 0 : place.flat / layout.inner;
    place.inner = place.flat - place.outer * layout.inner;
    return true;
}

template <class S>
__device__ S channel_value(const void* array, double number, i64 channel) {
    return array ? static_cast<const S*>(array)[channel] : S(number);
}

template <int Width, class S>
__device__ void load_coefficients(Coefficients<S> (&k)[Width], const Dynamics& d, const ChannelCoefficients& given,
                                  const Layout& layout, const Place& place) {
    const bool per_channel = given.threshold || given.leak || given.gain || given.drive;
#pragma unroll
    for (int w = 0; w < Width; ++w) {
        const i64 channel = per_channel ? (place.flat + w) / layout.channel_stride % layout.channels : 0;
        k[w].leak = channel_value<S>(given.leak, d.leak, channel);
        k[w].gain = channel_value<S>(given.gain, d.gain, channel);
        k[w].drive = channel_value<S>(given.drive, d.drive, channel);
        k[w].threshold = channel_value<S>(given.threshold, d.threshold, channel);
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
// address at every step, which the caches answer.
template <class Storage, int Width, Currents How>
struct CurrentReader {
    using S = State<Storage>;
    const Storage* x;
    const Storage* residual = nullptr;
    i64 x_step;
    i64 residual_step = 0;
    bool normalized = false;
    Normalizer<S> n[How == Currents::plain ? 1 : Width];

    template <class Call>
    __device__ CurrentReader(const Call& call, const Place& place)
        : x(static_cast<const Storage*>(call.current) + place.in(call.layout.current)),
          x_step(call.layout.current.step) {
        if (How == Currents::plain) return;
        normalized = How == Currents::normalized || call.normalization.mean;
        if (!normalized) return;
        const Normalization& given = call.normalization;
#pragma unroll
        for (int w = 0; w < Width; ++w) {
            const i64 channel = (place.flat + w) / call.layout.channel_stride % call.layout.channels;
            n[w].mean = static_cast<const S*>(given.mean)[channel];
            n[w].scale = static_cast<const S*>(given.scale)[channel];
            n[w].shift = static_cast<const S*>(given.shift)[channel];
            n[w].through_mean = channel_value<S>(given.through_mean, 0.0, channel);
            n[w].through_variance = channel_value<S>(given.through_variance, 0.0, channel);
        }
        if (given.residual) {
            residual = static_cast<const Storage*>(given.residual) + place.in(call.layout.residual);
            residual_step = call.layout.residual.step;
        }
    }

    __device__ void read(S (&to)[Width], i64 step) const {
        load<Width>(to, x + step * x_step);
        if (How == Currents::plain || !normalized) return;
#pragma unroll
        for (int w = 0; w < Width; ++w) to[w] = normalize(n[w], to[w]);
        if (residual) {
            S more[Width];
            load<Width>(more, residual + step * residual_step);
#pragma unroll
            for (int w = 0; w < Width; ++w) to[w] = to[w] + more[w];
        }
    }

    // x - mean, read again: the caches still have it, and registers are short.
    __device__ void centered(S (&to)[Width], i64 step) const {
        load<Width>(to, x + step * x_step);
#pragma unroll
        for (int w = 0; w < Width; ++w) to[w] = to[w] - n[w].mean;
    }
};

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
