// The CUDA kernel of the forward pass: one pass over time, the potentials in registers. Its variants are policies: the
// dynamics, how a current is read, whether neighbours share a channel.
#pragma once

#include "cuda/neurons.cuh"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Spikes as elements, without the arithmetic of a conversion.
template <class Storage, int Width>
__device__ void store_spikes(Storage* to, const bool (&fired)[Width]) {
    using P = Pack<Storage, Width>;
    P pack;
#pragma unroll
    for (int i = 0; i < P::words; ++i) {
        if constexpr (sizeof(Storage) == 8) {
            pack.word[i] = fired[i / 2] && i % 2 ? static_cast<unsigned>(one_bits<Storage> >> 32) : 0u;
        } else if constexpr (P::elements_of_word == 2) {
            const unsigned low = fired[2 * i] ? unsigned(one_bits<Storage>) : 0u;
            pack.word[i] = low | (fired[2 * i + 1] ? unsigned(one_bits<Storage>) << 16 : 0u);
        } else {
            pack.word[i] = static_cast<typename P::Word>(fired[i] ? one_bits<Storage> : 0u);
        }
    }
    store_pack(to, pack);
}

// What a forward pass writes, step by step. Extras (delay, a late reset, recorded potentials) are for D = General alone.
template <class Storage, int Width, bool Extras>
struct ForwardOutputs {
    using S = State<Storage>;
    const ForwardCall& call;
    const StepStride<Storage, Width> stride;
    Storage* const spikes;
    S* const potential;
    S* checkpoint;
    const bool delay;

    __device__ ForwardOutputs(const ForwardCall& call_, const Place& place)
        : call(call_), stride(call.layout.spikes),
          spikes(static_cast<Storage*>(call.spikes) + place.in(call.layout.spikes)),
          potential(Extras && call.potential ? static_cast<S*>(call.potential) + place.in(call.layout.spikes)
                                             : nullptr),
          checkpoint(call.checkpoints ? static_cast<S*>(call.checkpoints) + place.flat : nullptr),
          delay(Extras && call.dynamics.delay) {
        if (!delay) return;
        const bool none[Width] = {};
        store_spikes<Storage, Width>(spikes, none);
    }

    __device__ void keep(const S (&v)[Width]) {
        store<Width>(checkpoint, v);
        checkpoint += call.layout.neurons();
    }

    // Of the step `ahead` of the first of a group.
    __device__ void take(const bool (&fired)[Width], const S (&h)[Width], int first, int ahead) const {
        const int emitted = first + ahead + delay;
        if (!Extras || emitted < call.layout.steps)
            store_spikes<Storage, Width>(stride.at(stride.at_any(spikes, first + (Extras ? delay : 0)), ahead), fired);
        if (potential) store<Width>(stride.at(stride.at_any(potential, first), ahead), h);
    }
};

template <class Storage, int Width, class D, Currents How, Channels channels>
__global__ void __launch_bounds__(threads_per_block) forward_kernel(const ForwardCall call, const Walk walk) {
    using S = State<Storage>;
    const int steps = static_cast<int>(call.layout.steps);
    const Seat<Width> seat(walk);
    const D dynamics(call.dynamics);
    Coefficients<S> k[Width];
    load_coefficients(k, call.dynamics, call.coefficients, walk, seat);
    CurrentReader<Storage, Width, How, channels> current(call, walk, seat);

    for (i64 row = seat.first_row; row < walk.rows; row += seat.rows_apart) {
        const Place place = seat.place(walk, call.layout, row);
        current.enter(place);
        ForwardOutputs<Storage, Width, is_general<D>> to(call, place);
        S v[Width];
        load_state(v, call.initial, S(rest(dynamics)), place.flat);
        for (int first = 0; first < steps; first += steps_ahead) {
            Pack<Storage, Width> elements[steps_ahead];
            S x[steps_ahead][Width];
            current.fetch(elements, first, steps - first);
            if (first > 0 && first % checkpoint_interval == 0 && to.checkpoint) to.keep(v);
#pragma unroll
            for (int a = 0; a < steps_ahead; ++a) widen_pack(x[a], elements[a]);
            current.to_currents(x, first, steps - first);
#pragma unroll
            for (int a = 0; a < steps_ahead; ++a) {
                if (first + a >= steps) continue;
                S h[Width];
                bool fired[Width];
#pragma unroll
                for (int w = 0; w < Width; ++w) {
                    h[w] = charge(dynamics, k[w], v[w], x[a][w]);
                    fired[w] = fires(dynamics, k[w], h[w]);
                    v[w] = reset(dynamics, k[w], h[w], fired[w]);
                }
                to.take(fired, h, first, a);
            }
        }
        store_state(call.last, v, place.flat);
    }
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
