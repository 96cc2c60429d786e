// The CUDA kernel of the forward pass: one pass over time, the potentials in registers. Its variants are policies: the
// dynamics, how a current is read.
#pragma once

#include "cuda/neurons.cuh"

namespace snnfast {
inline namespace SNNFAST_TARGET {

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
    load_coefficients(k, call.dynamics, call.coefficients, layout, place);
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
        for (i64 group = first; group < last; group += steps_ahead) {
            S x[steps_ahead][Width];
#pragma unroll
            for (int a = 0; a < steps_ahead; ++a)
                if (group + a < last) current.read(x[a], group + a);
#pragma unroll
            for (int a = 0; a < steps_ahead; ++a) {
                const i64 step = group + a;
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

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
