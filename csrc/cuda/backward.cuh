// The CUDA kernel of the backward pass: blocks of Block steps, the last first, are rebuilt in registers from the input
// (and a checkpoint) and walked in reverse. Its variants are policies: the dynamics, the surrogate, how a current is read,
// whether neighbours share a channel, and what the pass is for.
//
// A block's loads are issued before anything waits for one of them, and those of its gradients a group of steps ahead of
// their use; steps beyond the last are left out after the loads, so that no load waits behind a branch.
#pragma once

#include "cuda/channel_sums.cuh"
#include "cuda/neurons.cuh"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// What becomes of the gradients of currents: stored for every step; summed over the steps of what was held; summed for
// the gradients of a batch's statistics; passed through the normalization.
template <class Storage, int Width, Pass pass, class Reader>
struct GradientWriter {
    using S = State<Storage>;
    static constexpr bool any = pass == Pass::any;
    const BackwardCall& call;
    const Reader& current;
    const StepStride<Storage, Width> stride;
    Storage* to = nullptr;
    Storage* residual = nullptr;
    Storage *to_block = nullptr, *residual_block = nullptr;  // of the first step of a block
    const bool held;
    const bool batch;
    S sum[Width], product[Width];
    S sums[any ? Width : 1], products[any ? Width : 1];  // of the rows before, where a row's own are wanted too

    __device__ GradientWriter(const BackwardCall& call_, const Reader& current_)
        : call(call_), current(current_), stride(call.layout.grad_current), held(any && call.layout.held),
          batch(call.normalization.through_mean) {
        fill(sum, S(0));
        fill(product, S(0));
        fill(sums, S(0));
        fill(products, S(0));
    }

    __device__ void enter(const Place& place) {
        const i64 at = place.in(call.layout.grad_current);
        if (pass != Pass::sums && call.grad_current && !held) to = static_cast<Storage*>(call.grad_current) + at;
        if (pass != Pass::sums && call.grad_residual && !(any && call.layout.residual_held))
            residual = static_cast<Storage*>(call.grad_residual) + at;
    }

    __device__ void enter_block(int first) {
        if (pass == Pass::sums) return;
        to_block = stride.at_any(to, first);
        residual_block = stride.at_any(residual, first);
    }

    // g: dL/dI of the step `ahead` of a block's first; elements: what was read for its current.
    __device__ void take(const S (&g)[Width], const Pack<Storage, Width>& elements, int ahead) {
        if (!current.normalized) {
            if (any && held)
                add(sum, g);
            else if (!any || to)
                put(to_block, g, ahead);
            return;
        }
        S centered[Width];
        current.centered(centered, elements);
        if (pass != Pass::gradients) {
            add(sum, g);
#pragma unroll
            for (int w = 0; w < Width; ++w) product[w] = multiply_add(g[w], centered[w], product[w]);
        }
        if (pass == Pass::gradients || (any && to)) {
            S out[Width];
            through(out, g, centered);
            put(to_block, out, ahead);
        }
        if (pass != Pass::sums && residual) put(residual_block, g, ahead);
    }

    __device__ void put(Storage* block, const S (&g)[Width], int ahead) const {
        store<Width>(stride.at(block, ahead), g);
    }

    // What was held has one gradient, of all steps.
    __device__ void finish_held(const Place& place) {
        if (!any || !held) return;
        if (call.layout.residual_held && call.grad_residual)
            store<Width>(static_cast<Storage*>(call.grad_residual) + place.flat, sum);
        if (!call.grad_current) return;
        S out[Width];
        if (current.normalized) {
            Pack<Storage, Width> elements;
            S centered[Width];
            load_pack(elements, current.x);
            current.centered(centered, elements);
            through(out, sum, centered);
        } else {
#pragma unroll
            for (int w = 0; w < Width; ++w) out[w] = sum[w];
        }
        store<Width>(static_cast<Storage*>(call.grad_current) + place.flat, out);
    }

    __device__ void end_row() {
        add(sums, sum);
        add(products, product);
        fill(sum, S(0));
        fill(product, S(0));
    }
    __device__ void restore() {
        add(sum, sums);
        add(product, products);
    }

    __device__ void through(S (&out)[Width], const S (&g)[Width], const S (&centered)[Width]) const {
#pragma unroll
        for (int w = 0; w < Width; ++w) out[w] = gradient_through(current.of(w), g[w], centered[w], !any || batch);
    }

    static __device__ void add(S (&to)[Width], const S (&more)[Width]) {
#pragma unroll
        for (int w = 0; w < Width; ++w) to[w] += more[w];
    }
};

// The gradients that a backward pass is sent. No gradient is given where nobody sends one, nor to spikes that are delayed
// beyond the last step.
template <class Storage, int Width, bool any, bool Extras>
struct SentGradients {
    using S = State<Storage>;
    const BackwardCall& call;
    const StepStride<Storage, Width> stride;
    const Storage* spikes;
    const Storage* block = nullptr;  // at the first step of a block
    const S* potential;
    const int delay;

    __device__ SentGradients(const BackwardCall& call_, const Place& place)
        : call(call_), stride(call.layout.grad_spikes),
          spikes(call.grad_spikes ? static_cast<const Storage*>(call.grad_spikes) + place.in(call.layout.grad_spikes)
                                  : nullptr),
          potential(Extras && call.grad_potential
                        ? static_cast<const S*>(call.grad_potential) + place.in(call.layout.grad_potential)
                        : nullptr),
          delay(Extras && call.dynamics.delay ? 1 : 0) {}

    __device__ void enter_block(int first) {
        if (!any) block = stride.at_any(spikes, first);
    }

    // Of the spikes of the steps from the one `ahead` of a block's first, of which the first `length` are wanted.
    template <int Steps>
    __device__ void fetch(Pack<Storage, Width> (&g)[Steps], int first, int ahead, int length) const {
        if (!any) return load_steps(g, stride.at(block, ahead), stride, length);
#pragma unroll
        for (int a = 0; a < Steps; ++a) {
            const int emitted = first + ahead + a + delay;
            if (spikes && a < length && emitted < call.layout.steps)
                load_pack(g[a], stride.at_any(spikes, emitted));
            else
                clear(g[a]);
        }
    }

    // Of a step's recorded potential.
    __device__ void read_potential(S (&g)[Width], int step) const {
        fill(g, S(0));
        if (potential) load<Width>(g, potential + i64(step) * call.layout.grad_potential.step);
    }
};

// The potentials before a block's steps: a checkpoint, or ahead of all steps what the call starts from.
template <int Width, class S>
__device__ void load_initial(S (&to)[Width], const BackwardCall& call, S rest, int first, i64 flat) {
    if (first == 0)
        load_state(to, call.initial, rest, flat);
    else
        load<Width>(to, static_cast<const S*>(call.checkpoints) +
                            (first / checkpoint_interval - 1) * call.layout.neurons() + flat);
}

// The sums over time for the gradients of threshold and tau.
template <class S, int Width, bool Extras>
struct TableGradients {
    S threshold[Width], tau[Width];

    __device__ TableGradients() {
        fill(threshold, S(0));
        fill(tau, S(0));
    }
    __device__ void store(const BackwardCall& call, i64 flat) const {
        if (!Extras) return;
        store_state(call.grad_threshold, threshold, flat);
        store_state(call.grad_tau, tau, flat);
    }
};

// A block of steps of Width neurons.
template <class Storage, int Width, int Block, class D, Currents How, Channels channels, Pass pass, bool Extras>
struct BlockOfSteps {
    using S = State<Storage>;
    using Reader = CurrentReader<Storage, Width, How, channels>;
    using Sent = SentGradients<Storage, Width, pass == Pass::any, Extras>;
    using Writer = GradientWriter<Storage, Width, pass, Reader>;
    static constexpr int groups = Block / steps_ahead;
    // x is wanted again on the way back: of a short block it is still there, else read again, which the caches answer.
    static constexpr bool reads_again = How != Currents::plain && groups > 1;
    // What is wanted on the way back is loaded a group ahead where there are registers for it.
    static constexpr bool ahead =
        !is_general<D> &&
        (!reads_again || (sizeof(Storage) == 2 && (channels == Channels::shared || pass == Pass::sums)));

    // Groups of steps beyond the last are left out where the branches for it do not cost registers that are short.
    static constexpr bool leaves_out = !(ahead && reads_again);

    const BackwardCall& call;
    const KnownLateness<D, Extras>& dynamics;
    Coefficients<S> (&k)[Width];
    const Reader& current;
    Sent& sent;
    Writer& writer;
    const int first;
    const int length;
    Pack<Storage, Width> elements[groups][steps_ahead];
    Pack<Storage, Width> g[groups][steps_ahead];
    S initial[Width], h[Block][Width];
    const Storage* x;  // at the first step

    __device__ BlockOfSteps(const BackwardCall& call_, const KnownLateness<D, Extras>& dynamics_,
                            Coefficients<S> (&k_)[Width], const Reader& current_, Sent& sent_, Writer& writer_,
                            int first_, int length_)
        : call(call_), dynamics(dynamics_), k(k_), current(current_), sent(sent_), writer(writer_), first(first_),
          length(length_), x(current.step.at_any(current.x, first)) {
        sent.enter_block(first);
        writer.enter_block(first);
    }

    // Never, which the compiler cannot know: loads before what might be done again are not put off until they are used.
    __device__ bool again() const { return !is_general<D> && call.layout.steps < 1; }

    // The elements of all steps, and the first gradients on the way back.
    __device__ void load_all() {
        Pack<Storage, Width> all[Block];
        load_steps(all, x, current.step, length);
#pragma unroll
        for (int b = 0; b < Block; ++b) {
            widen_pack(h[b], all[b]);
            elements[b / steps_ahead][b % steps_ahead] = all[b];
        }
        if (ahead && (!leaves_out || groups == 1 || Block - steps_ahead < length)) load_group(groups - 1);
    }

    __device__ void load_group(int group) {
        const int from = group * steps_ahead;
        sent.fetch(g[group], first, from, length - from);
        if (reads_again && current.normalized)
            load_steps(elements[group], current.step.at(x, from), current.step, length - from);
    }

    // The charged potentials, from those that were before. Steps beyond the last one do no harm.
    __device__ void rebuild(i64 flat) {
        load_initial(initial, call, S(rest(dynamics)), first, flat);
        load_all();
        do {
            current.to_currents(h, first, length);
            S v[Width];
#pragma unroll
            for (int w = 0; w < Width; ++w) v[w] = initial[w];
#pragma unroll
            for (int b = 0; b < Block; ++b) {
                if (leaves_out && b % steps_ahead == 0 && b > 0 && b >= length) break;
#pragma unroll
                for (int w = 0; w < Width; ++w) {
                    h[b][w] = charge(dynamics, k[w], v[w], h[b][w]);
                    v[w] = reset(dynamics, k[w], h[b][w], fires(dynamics, k[w], h[b][w]));
                }
            }
        } while (again());
    }

    // The same coefficients, which the compiler cannot know to be the same: what was computed with them of every step is
    // computed again, for which there are instructions enough, and not kept, for which there are no registers.
    __device__ void anew(Coefficients<S> (&same)[Width]) const {
        const Bits<S> zero = call.layout.steps < 1;
#pragma unroll
        for (int w = 0; w < Width; ++w) same[w].threshold = bits_as<S>(bits_as<Bits<S>>(same[w].threshold) + zero);
    }

    template <class Surrogate>
    __device__ void walk_back(S gamma, S beta, S (&grad_v)[Width], TableGradients<S, Width, Extras>& tables) {
        anew(k);
#pragma unroll
        for (int group = groups - 1; group >= 0; --group) {
            if (ahead && group > 0 && (!leaves_out || (group - 1) * steps_ahead < length)) load_group(group - 1);
            if (group > 0 && group * steps_ahead >= length) continue;
            if (!ahead) load_group(group);
            if (pass == Pass::sums) hold_loads(again(), call.sums);  // as the stores of other passes do
#pragma unroll
            for (int a = steps_ahead - 1; a >= 0; --a) {  // the hot loop: a step of Width neurons
                const int b = group * steps_ahead + a;
                if (b >= length) continue;
                S out[Width];
                if constexpr (Extras)
                    step_with_tables<Surrogate>(out, b, gamma, beta, grad_v, tables);
                else
                    step<Surrogate>(out, b, gamma, beta, grad_v);
                writer.take(out, elements[group][a], b);
            }
        }
    }

    template <class Surrogate>
    __device__ void step(S (&out)[Width], int b, S gamma, S beta, S (&grad_v)[Width]) const {
        const Pack<Storage, Width>& pack = g[b / steps_ahead][b % steps_ahead];
#pragma unroll
        for (int w = 0; w < Width; ++w) {
            const S delta = step_gradient<Surrogate>(dynamics, k[w], gamma, beta, h[b][w], element(pack, w),
                                                     NotRecorded{}, grad_v[w])
                                .potential;
            out[w] = dynamics.leaky ? k[w].gain * delta : delta;
            grad_v[w] = dynamics.leaky ? k[w].leak * delta : delta;
        }
    }

    template <class Surrogate>
    __device__ void step_with_tables(S (&out)[Width], int b, S gamma, S beta, S (&grad_v)[Width],
                                     TableGradients<S, Width, Extras>& tables) const {
        S recorded[Width], x[1][Width];
        sent.read_potential(recorded, first + b);
        if (call.grad_tau) {
            load<Width>(x[0], current.step.at_any(current.x, first + b));
            current.to_currents(x, first + b, 1);
        }
#pragma unroll
        for (int w = 0; w < Width; ++w) {
            const S sent_to_spike = element(g[b / steps_ahead][b % steps_ahead], w);
            const StepGradient<S> step =
                step_gradient<Surrogate>(dynamics, k[w], gamma, beta, h[b][w], sent_to_spike, recorded[w], grad_v[w]);
            out[w] = dynamics.leaky ? k[w].gain * step.potential : step.potential;
            grad_v[w] = dynamics.leaky ? k[w].leak * step.potential : step.potential;
            tables.threshold[w] += step.threshold;
            if (!call.grad_tau && !dynamics.late) continue;
            const S charged = h[b > 0 ? b - 1 : 0][w];
            const S before = b > 0 ? reset(dynamics, k[w], charged, fires(dynamics, k[w], charged)) : initial[w];
            if (dynamics.late) tables.threshold[w] += late_threshold_gradient(dynamics, k[w], step.potential, before);
            if (call.grad_tau) tables.tau[w] += tau_gradient(dynamics, step.potential, before, x[0][w]);
        }
    }
};

// Extras (delay, a late reset, gradients of recorded potentials, of the threshold and of tau) are compiled in where asked for.
template <class Storage, int Width, int Block, class Surrogate, class D, Currents How, Channels channels, Pass pass,
          bool Extras>
__global__ void __launch_bounds__(threads_per_block, resident_blocks<Storage, Block, D, How, channels>)
    backward_kernel(const BackwardCall call, const Walk walk) {
    using S = State<Storage>;
    using Steps = BlockOfSteps<Storage, Width, Block, D, How, channels, pass, Extras>;
    const Layout& layout = call.layout;
    const Seat<Width> seat(walk);
    const KnownLateness<D, Extras> dynamics(call.dynamics);
    Coefficients<S> k[Width];
    load_coefficients(k, call.dynamics, call.coefficients, walk, seat);
    typename Steps::Reader current(call, walk, seat);
    typename Steps::Writer writer(call, current);

    for (i64 row = seat.first_row; row < walk.rows; row += seat.rows_apart) {
        const Place place = seat.place(walk, layout, row);
        current.enter(place);
        writer.enter(place);
        typename Steps::Sent sent(call, place);
        TableGradients<S, Width, Extras> tables;
        S grad_v[Width];
        load_state(grad_v, call.grad_last, S(0), place.flat);
        const int all = static_cast<int>(layout.steps);
        for (int first = (all - 1) / Block * Block; first >= 0; first -= Block) {
            Steps steps(call, dynamics, k, current, sent, writer, first, all - first < Block ? all - first : Block);
            steps.rebuild(place.flat);
            steps.template walk_back<Surrogate>(S(call.surrogate.gamma), S(call.surrogate.beta), grad_v, tables);
        }
        writer.finish_held(place);
        store_state(call.grad_initial, grad_v, place.flat);
        tables.store(call, place.flat);
        if constexpr (pass == Pass::any) writer.end_row();
    }
    if constexpr (How != Currents::plain && pass != Pass::gradients) {
        if (pass == Pass::any && !call.sums) return;
        __shared__ ChannelSums<2, Width, channels> sums;
        if constexpr (pass == Pass::any) writer.restore();
        sums.take(0, writer.sum, walk, seat);
        sums.take(1, writer.product, walk, seat);
        sums.store(static_cast<double*>(call.workspace), layout.channels, walk, seat);
    }
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
