// The CUDA kernels. The tests also run this file on the host, through a launch shim; keep it free of CUDA's headers.
//
// A thread owns Width neighbouring neurons through all steps, with the state in registers: one pass over time forward;
// backward, blocks of Block steps are rebuilt in registers from the input (and a checkpoint) and walked in reverse.
// Variants are policies of these two kernels: the dynamics, the surrogate, how a current is read.
#pragma once

#include "neuron.h"
#include "normalization.h"

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

// What becomes of the gradients of currents: stored for every step; summed over the steps of what was held; summed for
// the gradients of a batch's statistics; passed through the normalization.
template <class Storage, int Width, Currents How>
struct GradientWriter {
    using S = State<Storage>;
    const BackwardCall& call;
    const Place& place;
    const CurrentReader<Storage, Width, How>& current;
    Storage* to;
    Storage* residual = nullptr;
    const bool held;
    const bool batch;
    S sum[Width], product[How == Currents::plain ? 1 : Width];

    __device__ GradientWriter(const BackwardCall& call_, const Place& place_,
                              const CurrentReader<Storage, Width, How>& current_)
        : call(call_), place(place_), current(current_), to(nullptr), held(call_.layout.held),
          batch(call_.normalization.through_mean) {
        if (call.grad_current && !held)
            to = static_cast<Storage*>(call.grad_current) + place.in(call.layout.grad_current);
        if (How != Currents::plain && call.grad_residual && !call.layout.residual_held)
            residual = static_cast<Storage*>(call.grad_residual) + place.in(call.layout.grad_current);
        fill(sum, S(0));
        fill(product, S(0));
    }

    __device__ void take(const S (&g)[Width], i64 step) {
        if (How == Currents::plain || !current.normalized) {
            if (held) {
#pragma unroll
                for (int w = 0; w < Width; ++w) sum[w] += g[w];
            } else {
                store<Width>(to + step * call.layout.grad_current.step, g);
            }
            return;
        }
        S centered[Width];
        current.centered(centered, step);
#pragma unroll
        for (int w = 0; w < Width; ++w) {
            sum[w] += g[w];
            product[How == Currents::plain ? 0 : w] += g[w] * centered[w];
        }
        if (to) {
            S out[Width];
            through(out, g, centered);
            store<Width>(to + step * call.layout.grad_current.step, out);
        }
        if (residual) store<Width>(residual + step * call.layout.grad_current.step, g);
    }

    __device__ void finish() {
        if (How == Currents::plain || !current.normalized) {
            if (held) store<Width>(static_cast<Storage*>(call.grad_current) + place.flat, sum);
            return;
        }
        if (held && call.grad_current) {
            S centered[Width], out[Width];
            current.centered(centered, 0);
            through(out, sum, centered);
            store<Width>(static_cast<Storage*>(call.grad_current) + place.flat, out);
        }
        if (call.layout.residual_held && call.grad_residual)
            store<Width>(static_cast<Storage*>(call.grad_residual) + place.flat, sum);
        store_state(call.sum_gradient, sum, place.flat);
        if constexpr (How != Currents::plain) store_state(call.sum_product, product, place.flat);
    }

    __device__ void through(S (&out)[Width], const S (&g)[Width], const S (&centered)[Width]) const {
#pragma unroll
        for (int w = 0; w < Width; ++w)
            out[w] = gradient_through(current.n[How == Currents::plain ? 0 : w], g[w], centered[w], batch);
    }
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
template <class Storage, int Width, class D, Currents How>
__global__ void __launch_bounds__(threads_per_block) forward_kernel(const ForwardCall call) {
    using S = State<Storage>;
    const Layout& layout = call.layout;
    Place place;
    if (!find_place<Width>(layout, place)) return;

    const D dynamics(call.dynamics);
    Coefficients<S> k[Width];
    load_coefficients(k, call.dynamics, call.tables, layout, place);
    const CurrentReader<Storage, Width, How> current(call, place);
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
template <class Storage, int Width, int Block, class Surrogate, class D, Currents How, bool Extras>
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
    const CurrentReader<Storage, Width, How> current(call, place);
    GradientWriter<Storage, Width, How> grad_current(call, place, current);
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
                    const StepGradient<S> step =
                        step_gradient<Surrogate>(dynamics, k[w], gamma, beta, h[b][w], g[a][w], recorded[w], grad_v[w]);
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
// into the workspace [arrays, channels, pieces]; the same kernel then sums the pieces.
//
// values: [arrays, before, channels, after]; sums: [arrays, channels, pieces]. A block sums one piece of one channel,
// or, where neighbours are of different channels (`after` < 32), of as many channels as a warp has threads.
template <class S>
__global__ void __launch_bounds__(threads_per_block)
    channel_sum_kernel(const S* values, double* sums, i64 before, i64 channels, i64 after) {
    constexpr int warp = 32;
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
    for (i64 start = 1; start < steps; start += steps_ahead) {
        S more[steps_ahead][Width];
#pragma unroll
        for (int a = 0; a < steps_ahead; ++a)
            if (start + a < steps) load<Width>(more[a], x + (start + a) * layout.current.step);
#pragma unroll
        for (int a = 0; a < steps_ahead; ++a) {
            if (start + a >= steps) continue;
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

template <class Storage>
__global__ void __launch_bounds__(threads_per_block) channel_kernel(const ChannelCall call) {
    const i64 channel = static_cast<i64>(blockIdx.x) * threads_per_block + threadIdx.x;
    if (channel < call.layout.channels) channel_step<Storage, State<Storage>>(call, channel);
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
