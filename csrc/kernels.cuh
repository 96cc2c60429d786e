// The CUDA kernels. The tests also run this file on the host, through a launch shim; keep it free of CUDA's headers.
//
// A thread owns Width neighbouring neurons through all steps, with the state in registers: one pass over time forward;
// backward, blocks of Block steps are rebuilt in registers from the input (and a checkpoint) and walked in reverse.
// Variants are policies of these two kernels: how a current is read and what becomes of its gradient.
#pragma once

#include "neuron.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

constexpr int threads_per_block = 128;
constexpr int steps_ahead = 4;  // steps whose loads are issued together: stores in between would hold them back

// Width elements moved by one access of up to 16 bytes.
template <class Storage, int Width>
struct alignas(sizeof(Storage) * Width < 16 ? sizeof(Storage) * Width : 16) Pack {
    Storage element[Width];
};

template <int Width, class Storage>
__device__ void load(State<Storage> (&to)[Width], const Storage* from) {
    const auto pack = *reinterpret_cast<const Pack<Storage, Width>*>(from);
#pragma unroll
    for (int w = 0; w < Width; ++w) to[w] = widen(pack.element[w]);
}

template <int Width, class Storage>
__device__ void store(Storage* to, const State<Storage> (&from)[Width]) {
    Pack<Storage, Width> pack;
#pragma unroll
    for (int w = 0; w < Width; ++w) pack.element[w] = Narrow<Storage>::from(from[w]);
    *reinterpret_cast<Pack<Storage, Width>*>(to) = pack;
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
    const i64 pack = static_cast<i64>(blockIdx.x) * threads_per_block + threadIdx.x;
    place.flat = pack * Width;
    if (place.flat >= layout.outer * layout.inner) return false;
    place.outer = layout.outer == 1 ? 0 : place.flat / layout.inner;
    place.inner = place.flat - place.outer * layout.inner;
    return true;
}

template <class S>
__device__ S channel_value(const void* table, double number, i64 channel) {
    return table ? static_cast<const S*>(table)[channel] : S(number);
}

template <int Width, class S>
__device__ void load_coefficients(Coefficients<S> (&k)[Width], const Dynamics& d, const Tables& tables,
                                  const Layout& layout, const Place& place) {
    const bool any_table = tables.threshold || tables.leak || tables.gain || tables.drive;
#pragma unroll
    for (int w = 0; w < Width; ++w) {
        const i64 channel = any_table ? (place.flat + w) / layout.channel_stride % layout.channels : 0;
        k[w].leak = channel_value<S>(tables.leak, d.leak, channel);
        k[w].gain = channel_value<S>(tables.gain, d.gain, channel);
        k[w].drive = channel_value<S>(tables.drive, d.drive, channel);
        k[w].threshold = channel_value<S>(tables.threshold, d.threshold, channel);
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

// How a current is read: one for every step …
template <class Storage, int Width>
struct CurrentPerStep {
    using S = State<Storage>;
    const Storage* first;
    i64 stride;

    __device__ CurrentPerStep(const void* current, const Layout& layout, const Place& place)
        : first(static_cast<const Storage*>(current) + place.in(layout.current)), stride(layout.current.step) {}
    __device__ void read(S (&x)[Width], i64 step) const { load<Width>(x, first + step * stride); }
};

// … or one held for all of them.
template <class Storage, int Width>
struct CurrentHeld {
    using S = State<Storage>;
    S held[Width];

    __device__ CurrentHeld(const void* current, const Layout& layout, const Place& place) {
        load<Width>(held, static_cast<const Storage*>(current) + place.in(layout.current));
    }
    __device__ void read(S (&x)[Width], i64) const {
#pragma unroll
        for (int w = 0; w < Width; ++w) x[w] = held[w];
    }
};

// What becomes of a current's gradient: stored for every step …
template <class Storage, int Width>
struct GradientPerStep {
    using S = State<Storage>;
    Storage* first;
    i64 stride;

    __device__ GradientPerStep(void* gradient, const Layout& layout, const Place& place)
        : first(static_cast<Storage*>(gradient) + place.in(layout.grad_current)), stride(layout.grad_current.step) {}
    __device__ void take(const S (&g)[Width], i64 step) { store<Width>(first + step * stride, g); }
    __device__ void finish() {}
};

// … or summed over the steps of a held current.
template <class Storage, int Width>
struct GradientSummed {
    using S = State<Storage>;
    Storage* to;
    S sum[Width];

    __device__ GradientSummed(void* gradient, const Layout&, const Place& place)
        : to(static_cast<Storage*>(gradient) + place.flat) {
        fill(sum, S(0));
    }
    __device__ void take(const S (&g)[Width], i64) {
#pragma unroll
        for (int w = 0; w < Width; ++w) sum[w] += g[w];
    }
    __device__ void finish() { store<Width>(to, sum); }
};

template <class Storage, int Width, bool Held>
struct CurrentPolicy {
    using Read = CurrentPerStep<Storage, Width>;
    using Gradient = GradientPerStep<Storage, Width>;
};
template <class Storage, int Width>
struct CurrentPolicy<Storage, Width, true> {
    using Read = CurrentHeld<Storage, Width>;
    using Gradient = GradientSummed<Storage, Width>;
};

template <class D>
struct IsGeneral {
    static constexpr bool value = false;
};
template <class S>
struct IsGeneral<General<S>> {
    static constexpr bool value = true;
};

// Extras (delay, recorded potentials) are for D = General alone.
template <class Storage, int Width, class D, bool Held>
__global__ void __launch_bounds__(threads_per_block) forward_kernel(const ForwardCall call) {
    using S = State<Storage>;
    const Layout& layout = call.layout;
    Place place;
    if (!find_place<Width>(layout, place)) return;

    const D dynamics(call.dynamics);
    Coefficients<S> k[Width];
    load_coefficients(k, call.dynamics, call.tables, layout, place);
    const typename CurrentPolicy<Storage, Width, Held>::Read current(call.current, layout, place);
    Storage* const spikes = static_cast<Storage*>(call.spikes) + place.in(layout.spikes);
    S* const potential =
        IsGeneral<D>::value && call.potential ? static_cast<S*>(call.potential) + place.in(layout.spikes) : nullptr;
    const i64 delay = IsGeneral<D>::value && call.dynamics.delay ? 1 : 0;

    S v[Width];
    load_state(v, call.initial, S(rest(dynamics)), place.flat);
    if (delay) {
        S none[Width];
        fill(none, S(0));
        store<Width>(spikes, none);
    }
    for (i64 first = 0; first < layout.steps; first += checkpoint_interval) {
        if (first > 0 && call.checkpoints) {
            const i64 kept = first / checkpoint_interval - 1;
            store<Width>(static_cast<S*>(call.checkpoints) + kept * layout.neurons() + place.flat, v);
        }
        const i64 last = first + checkpoint_interval < layout.steps ? first + checkpoint_interval : layout.steps;
        for (i64 start = first; start < last; start += steps_ahead) {
            S x[steps_ahead][Width];
#pragma unroll
            for (int a = 0; a < steps_ahead; ++a)
                if (start + a < last) current.read(x[a], start + a);
#pragma unroll
            for (int a = 0; a < steps_ahead; ++a) {
                const i64 step = start + a;
                if (step >= last) continue;
                S h[Width], s[Width];
#pragma unroll
                for (int w = 0; w < Width; ++w) {
                    h[w] = charge(dynamics, k[w], v[w], x[a][w]);
                    const bool fired = fires(dynamics, k[w], h[w]);
                    s[w] = fired ? S(1) : S(0);
                    v[w] = reset(dynamics, k[w], h[w], fired);
                }
                if (step + delay < layout.steps) store<Width>(spikes + (step + delay) * layout.spikes.step, s);
                if (potential) store<Width>(potential + step * layout.spikes.step, h);
            }
        }
    }
    store_state(call.last, v, place.flat);
}

// Extras (delay, gradients of recorded potentials, of the threshold and of tau) are compiled in where asked for.
template <class Storage, int Width, int Block, class Surrogate, class D, bool Held, bool Extras>
__global__ void __launch_bounds__(threads_per_block) backward_kernel(const BackwardCall call) {
    using S = State<Storage>;
    const Layout& layout = call.layout;
    Place place;
    if (!find_place<Width>(layout, place)) return;

    const D dynamics(call.dynamics);
    const S gamma = S(call.surrogate.gamma);
    const S beta = S(call.surrogate.beta);
    Coefficients<S> k[Width];
    load_coefficients(k, call.dynamics, call.tables, layout, place);
    const typename CurrentPolicy<Storage, Width, Held>::Read current(call.current, layout, place);
    typename CurrentPolicy<Storage, Width, Held>::Gradient grad_current(call.grad_current, layout, place);
    const Storage* const grad_spikes =
        call.grad_spikes ? static_cast<const Storage*>(call.grad_spikes) + place.in(layout.grad_spikes) : nullptr;
    const S* const grad_potential = Extras && call.grad_potential
                                        ? static_cast<const S*>(call.grad_potential) + place.in(layout.grad_potential)
                                        : nullptr;
    const i64 delay = Extras && call.dynamics.delay ? 1 : 0;

    S grad_v[Width], sum_threshold[Width], sum_tau[Width];
    load_state(grad_v, call.grad_last, S(0), place.flat);
    fill(sum_threshold, S(0));
    fill(sum_tau, S(0));

    for (i64 first = (layout.steps - 1) / Block * Block; first >= 0; first -= Block) {
        const int length = static_cast<int>(layout.steps - first < Block ? layout.steps - first : Block);
        S start[Width], v[Width], h[Block][Width];
        if (first == 0)
            load_state(start, call.initial, S(rest(dynamics)), place.flat);
        else
            load<Width>(start, static_cast<const S*>(call.checkpoints) +
                                   (first / checkpoint_interval - 1) * layout.neurons() + place.flat);
#pragma unroll
        for (int w = 0; w < Width; ++w) v[w] = start[w];
#pragma unroll
        for (int b = 0; b < Block; ++b) {
            if (b >= length) continue;
            S x[Width];
            current.read(x, first + b);
#pragma unroll
            for (int w = 0; w < Width; ++w) {
                h[b][w] = charge(dynamics, k[w], v[w], x[w]);
                v[w] = reset(dynamics, k[w], h[b][w], fires(dynamics, k[w], h[b][w]));
            }
        }
#pragma unroll
        for (int group = Block - steps_ahead; group >= 0; group -= steps_ahead) {
            S g[steps_ahead][Width];
#pragma unroll
            for (int a = 0; a < steps_ahead; ++a) {
                const i64 emitted = first + group + a + delay;
                if (grad_spikes && group + a < length && emitted < layout.steps)
                    load<Width>(g[a], grad_spikes + emitted * layout.grad_spikes.step);
                else
                    fill(g[a], S(0));
            }
#pragma unroll
            for (int a = steps_ahead - 1; a >= 0; --a) {
                const int b = group + a;
                if (b >= length) continue;
                S recorded[Width], x[Width], out[Width];
                fill(recorded, S(0));
                if (grad_potential) load<Width>(recorded, grad_potential + (first + b) * layout.grad_potential.step);
                if (Extras && call.grad_tau) current.read(x, first + b);
#pragma unroll
                for (int w = 0; w < Width; ++w) {
                    const StepGradient<S> step = step_gradient<Surrogate>(dynamics, k[w], gamma, beta, h[b][w],
                                                                          g[a][w], recorded[w], grad_v[w]);
                    out[w] = dynamics.leaky ? k[w].gain * step.potential : step.potential;
                    grad_v[w] = dynamics.leaky ? k[w].leak * step.potential : step.potential;
                    if constexpr (Extras) {
                        sum_threshold[w] += step.threshold;
                        if (call.grad_tau) {
                            S before = start[w];
                            if (b > 0) {
                                const S charged = h[b > 0 ? b - 1 : 0][w];
                                before = reset(dynamics, k[w], charged, fires(dynamics, k[w], charged));
                            }
                            sum_tau[w] += tau_gradient(dynamics, step.potential, before, x[w]);
                        }
                    }
                }
                grad_current.take(out, first + b);
            }
        }
    }
    grad_current.finish();
    store_state(call.grad_initial, grad_v, place.flat);
    if constexpr (Extras) {
        store_state(call.grad_threshold, sum_threshold, place.flat);
        store_state(call.grad_tau, sum_tau, place.flat);
    }
}

// Sums per channel, in an order that depends on nothing but the sizes: every block sums a fixed share of a channel
// into the workspace [channels, pieces]; the same kernel then sums the pieces.
__device__ inline double sum_over_block(double value) {
    __shared__ double partial[threads_per_block];
    partial[threadIdx.x] = value;
    __syncthreads();
    for (int half = threads_per_block / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    return partial[0];
}

template <class S>
__global__ void __launch_bounds__(threads_per_block)
    channel_sum_kernel(const S* values, double* sums, i64 before, i64 channels, i64 after) {
    const i64 channel = blockIdx.x;
    const i64 piece = blockIdx.y;
    const i64 pieces = gridDim.y;
    double sum = 0;
    for (i64 m = piece * threads_per_block + threadIdx.x; m < before * after; m += pieces * threads_per_block)
        sum += values[(m / after * channels + channel) * after + m % after];
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) sums[channel * pieces + piece] = sum;
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
