// The CUDA kernel of the backward pass: blocks of Block steps, the last first, are rebuilt in registers from the input
// (and a checkpoint) and walked in reverse. Its variants are policies: the dynamics, the surrogate, how a current is read.
#pragma once

#include "cuda/neurons.cuh"

namespace snnfast {
inline namespace SNNFAST_TARGET {

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

// The gradients that a backward pass is sent. No gradient is given where nobody sends one, nor to spikes that are delayed
// beyond the last step.
template <class Storage, int Width, bool Extras>
struct SentGradients {
    using S = State<Storage>;
    const BackwardCall& call;
    const Storage* spikes;
    const S* potential;
    const i64 delay;

    __device__ SentGradients(const BackwardCall& call_, const Place& place)
        : call(call_),
          spikes(call.grad_spikes ? static_cast<const Storage*>(call.grad_spikes) + place.in(call.layout.grad_spikes)
                                  : nullptr),
          potential(Extras && call.grad_potential
                        ? static_cast<const S*>(call.grad_potential) + place.in(call.layout.grad_potential)
                        : nullptr),
          delay(Extras && call.dynamics.delay ? 1 : 0) {}

    // Of the spikes of the steps from `first`, of which the first `length` are asked for.
    __device__ void read_spikes(S (&g)[steps_ahead][Width], i64 first, int length) const {
#pragma unroll
        for (int a = 0; a < steps_ahead; ++a) {
            const i64 emitted = first + a + delay;
            if (spikes && a < length && emitted < call.layout.steps)
                load<Width>(g[a], spikes + emitted * call.layout.grad_spikes.step);
            else
                fill(g[a], S(0));
        }
    }

    // Of a step's recorded potential.
    __device__ void read_potential(S (&g)[Width], i64 step) const {
        fill(g, S(0));
        if (potential) load<Width>(g, potential + step * call.layout.grad_potential.step);
    }
};

// The potentials before a block's steps: a checkpoint, or ahead of all steps what the call starts from.
template <int Width, class S>
__device__ void load_initial(S (&to)[Width], const BackwardCall& call, S rest, i64 first, i64 flat) {
    if (first == 0)
        load_state(to, call.initial, rest, flat);
    else
        load<Width>(to, static_cast<const S*>(call.checkpoints) +
                            (first / checkpoint_interval - 1) * call.layout.neurons() + flat);
}

// The charged potentials of a block's steps, from the potentials that were before them.
template <int Width, int Block, class S, class D, class Reader>
__device__ void rebuild(S (&h)[Block][Width], const S (&initial)[Width], const D& dynamics,
                        const Coefficients<S> (&k)[Width], const Reader& current, i64 first, int length) {
    S v[Width];
#pragma unroll
    for (int w = 0; w < Width; ++w) v[w] = initial[w];
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
    load_coefficients(k, call.dynamics, call.coefficients, layout, place);
    const CurrentReader<Storage, Width, How> current(call, place);
    GradientWriter<Storage, Width, How> grad_current(call, place, current);
    const SentGradients<Storage, Width, Extras> sent(call, place);
    S grad_v[Width], sum_threshold[Width], sum_tau[Width];
    load_state(grad_v, call.grad_last, S(0), place.flat);
    fill(sum_threshold, S(0));
    fill(sum_tau, S(0));

    for (i64 first = (layout.steps - 1) / Block * Block; first >= 0; first -= Block) {
        const int length = static_cast<int>(layout.steps - first < Block ? layout.steps - first : Block);
        S initial[Width], h[Block][Width];
        load_initial(initial, call, S(rest(dynamics)), first, place.flat);
        rebuild(h, initial, dynamics, k, current, first, length);
#pragma unroll
        for (int group = Block - steps_ahead; group >= 0; group -= steps_ahead) {
            S g[steps_ahead][Width];
            sent.read_spikes(g, first + group, length - group);
#pragma unroll
            for (int a = steps_ahead - 1; a >= 0; --a) {  // the hot loop: a step of Width neurons
                const int b = group + a;
                if (b >= length) continue;
                S recorded[Width], x[Width], out[Width];
                sent.read_potential(recorded, first + b);
                if (Extras && call.grad_tau) current.read(x, first + b);
#pragma unroll
                for (int w = 0; w < Width; ++w) {
                    const StepGradient<S> step =
                        step_gradient<Surrogate>(dynamics, k[w], gamma, beta, h[b][w], g[a][w], recorded[w], grad_v[w]);
                    out[w] = dynamics.leaky ? k[w].gain * step.potential : step.potential;
                    grad_v[w] = dynamics.leaky ? k[w].leak * step.potential : step.potential;
                    if (Extras) sum_threshold[w] += step.threshold;
                    if (Extras && call.grad_tau) {
                        const S charged = h[b > 0 ? b - 1 : 0][w];
                        const S before =
                            b > 0 ? reset(dynamics, k[w], charged, fires(dynamics, k[w], charged)) : initial[w];
                        sum_tau[w] += tau_gradient(dynamics, step.potential, before, x[w]);
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

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
