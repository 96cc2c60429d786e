// The CPU kernels of the backward pass, compiled once per instruction set (SNNFAST_TARGET names the namespace).
//
// Blocks of steps are rebuilt from the input (and a checkpoint), then walked back in passes of a few steps, as the
// forward pass walks on.
#include <algorithm>
#include <initializer_list>

#include "cpu/backend.h"
#include "cpu/dispatch.h"
#include "cpu/sums.h"
#include "cpu/tiles.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {
namespace {

// Adds into an array of a tile's sums.
template <class S>
SNNFAST_HD void add(S* sum, Vector<S> value) {
    store(sum, Vector<S>(load(sum) + value));
}

// Of the backward pass, `walk_back` alone knows the surrogate: everything else is compiled once for all of them.
template <class Storage, class D, Currents How, bool Extras>
class BackwardTiles {
    using S = State<Storage>;
    using V = Vector<S>;
    static constexpr int most = pass_steps<Extras>;

public:
    SNNFAST_ONCE_A_TILE explicit BackwardTiles(const BackwardCall& call)
        : call_(call), dynamics_(call.dynamics), coefficients_(call.dynamics, call.coefficients, call.layout),
          writing_(std::max(writing<Storage>(call.grad_current, call.layout, call.layout.grad_current),
                            writing<Storage>(call.grad_residual, call.layout, call.layout.grad_current))),
          currents_(call, writing_), gamma_(S(call.surrogate.gamma)), beta_(S(call.surrogate.beta)),
          grad_spikes_(static_cast<const Storage*>(call.grad_spikes), call.layout.grad_spikes, call.layout.steps,
                       lanes<Storage>),
          grad_potential_(static_cast<const S*>(call.grad_potential), call.layout.grad_potential, call.layout.steps,
                          lanes<Storage>),
          grad_current_(call.layout.held ? nullptr : static_cast<Storage*>(call.grad_current), call.layout.grad_current,
                        call.layout.steps, lanes<Storage>),
          grad_residual_(call.layout.residual_held ? nullptr : static_cast<Storage*>(call.grad_residual),
                         call.layout.grad_current, call.layout.steps, lanes<Storage>) {}

    ~BackwardTiles() {
        if (writing_ == Writing::streamed) end_of_streaming();
    }

    template <class Surrogate>
    void run(const Tile& tile) {
        const i64 steps = call_.layout.steps;
        enter(tile);
        for (i64 first = (steps - 1) / checkpoint_interval * checkpoint_interval; first >= 0;
             first -= checkpoint_interval) {
            const i64 last = first + checkpoint_interval < steps ? first + checkpoint_interval : steps;
            const i64 fresh = rebuild_block(tile, first, last);
            if constexpr (!Extras)
                if (fresh < last) walk_back<Surrogate, most, true>(tile, first, fresh);
            for_each_pass<pass_steps_back<Extras>>(
                first, fresh, [&](auto steps, i64 from) {  // in reverse, from last to first
                    walk_back<Surrogate, steps(), false>(tile, first, first + fresh - steps() - from);
                });
        }
        leave(tile);
    }

private:
    SNNFAST_ONCE_A_TILE void enter(const Tile& tile) {
        coefficients_.enter(tile);
        currents_.enter(tile);
        g_ = grad_spikes_.enter(tile);
        p_ = grad_potential_.enter(tile);
        out_ = grad_current_.enter(tile);
        residual_ = grad_residual_.enter(tile);
        load_state(grad_v_, static_cast<const S*>(call_.grad_last), S(0), tile);
        if (Extras)
            for (S* sum : {sum_threshold_, sum_tau_}) std::memset(sum, 0, tile.span * sizeof(S));
        if (call_.layout.held || currents_.normalizers.normalized())
            for (S* sum : {sum_gradient_, sum_product_}) std::memset(sum, 0, tile.span * sizeof(S));
    }

    SNNFAST_ONCE_A_TILE void leave(const Tile& tile) {
        grad_current_.leave(tile);
        grad_residual_.leave(tile);
        if (call_.layout.held) finish_held(tile);
        keep(call_.grad_initial, tile, grad_v_);
        keep(call_.grad_threshold, tile, sum_threshold_);
        keep(call_.grad_tau, tile, sum_tau_);
        if (call_.sums) {
            keep(call_.workspace, tile, sum_gradient_);
            keep(static_cast<S*>(call_.workspace) + call_.layout.neurons(), tile, sum_product_);
        }
    }

    // The potentials of a block's steps before the one returned. The last pass is walked back as it is rebuilt: its
    // potentials need not leave the registers.
    SNNFAST_ONCE_A_TILE i64 rebuild_block(const Tile& tile, i64 first, i64 last) {
        const i64 b = first / checkpoint_interval;
        const S* initial = b == 0 ? static_cast<const S*>(call_.initial)
                                  : static_cast<const S*>(call_.checkpoints) + (b - 1) * call_.layout.neurons();
        load_state(v_, initial, S(rest(dynamics_)), tile);
        if (Extras) std::memcpy(block_initial_, v_, tile.span * sizeof(S));
        const i64 fresh = !Extras && last - first >= most ? last - most : last;
        for_each_pass<most>(first, fresh, [&](auto steps, i64 from) { rebuild<steps()>(tile, first, from); });
        return fresh;
    }

    // The charged potentials of a pass's steps; the potential after them is kept for the next pass.
    template <int Steps>
    SNNFAST_HD void rebuild_vector(V (&h)[Steps], const D& dynamics, const Coefficients<V>& k,
                                   const CurrentRows<Storage, How>& x, i64 i) {
        V currents[Steps];
        x.read(currents, i);
        V v = load(v_ + i);
        for (int t = 0; t < Steps; ++t) {
            h[t] = charge(dynamics, k, v, currents[t]);
            v = reset(dynamics, k, h[t], fires(dynamics, k, h[t]));
        }
        store(v_ + i, v);
    }

    template <int Steps>
    void rebuild(const Tile& tile, i64 block, i64 from) {
        const auto x = currents_.from(from);
        const auto& coefficients = coefficients_.local();
        const D dynamics = dynamics_;
        const i64 span = tile.span;
        S* const rebuilt = h_[from - block];
        for (i64 i = 0; i < span; i += lanes<Storage>) {
            V h[Steps];
            rebuild_vector(h, dynamics, coefficients.at(i), x, i);
            for (int t = 0; t < Steps; ++t) store(rebuilt + t * rebuilt_length + i, h[t]);
        }
    }

    // The rows of a pass's first step that its gradients go to, and how.
    struct Outputs {
        Storage* current;
        Storage* residual;
        i64 current_step, residual_step;
        bool normalized, batch, summed, deferred;
        Writing how;
    };

    Outputs outputs(const Tile& tile, i64 from) const {
        const bool normalized = currents_.normalizers.normalized();
        return {out_.at(from), residual_.at(from), out_.step, residual_.step, normalized, currents_.normalizers.batch(),
                // Sums over time: of the gradients of a held current, and for the gradients of the batch's statistics.
                call_.layout.held || (normalized && call_.sums), call_.deferred,
                tile.staged ? Writing::cached : writing_};
    }

    template <class Surrogate, int Steps, bool Fresh>
    void walk_back(const Tile& tile, i64 block, i64 from) {
        const i64 delay = Extras && call_.dynamics.delay;
        // Steps whose spike was emitted.
        const i64 emitted = from + Steps + delay > call_.layout.steps ? Steps - delay : Steps;
        const auto x = currents_.from(from);
        const auto& coefficients = coefficients_.local();
        const Storage* const g = g_ ? g_.at(from + delay) : no_gradients;
        const S* const p = p_.at(from);
        const i64 g_step = g_.step, p_step = p_.step, span = tile.span;
        const S* const rebuilt = h_[from - block];
        const Outputs to = outputs(tile, from);
        const D dynamics = dynamics_;
        const S gamma = gamma_, beta = beta_;
        for (i64 i = 0; i < span; i += lanes<Storage>) {
            const Coefficients<V> k = coefficients.at(i);
            V grad_spikes[Steps], potentials[Steps];
            for (int t = 0; t < Steps; ++t) {
                prefetch(g + t * g_step, i, x.ahead);
                grad_spikes[t] = !Extras || t < emitted ? load(g + t * g_step + i) : V{};
                if (!Fresh) potentials[t] = load(rebuilt + t * rebuilt_length + i);
            }
            if (Fresh) rebuild_vector(potentials, dynamics, k, x, i);
            V centered[Steps];
            const Normalizer<V> n = x.normalizer(i);
            if (to.normalized) {
                for (int t = 0; t < Steps; ++t) centered[t] = x.raw(t, i) - n.mean;
            }
            V grad_v = load(grad_v_ + i);
            V sum_gradient{}, sum_product{};
            if (to.summed) {
                sum_gradient = load(sum_gradient_ + i);
                sum_product = load(sum_product_ + i);
            }
            for (int t = Steps - 1; t >= 0; --t) {
                V grad_recorded = -V{};  // what changes nothing when it is added
                if (Extras && p) grad_recorded = load(p + t * p_step + i);
                const StepGradient<V> step = step_gradient<Surrogate>(dynamics, k, gamma, beta, potentials[t],
                                                                      grad_spikes[t], grad_recorded, grad_v);
                const V grad_x = dynamics.leaky ? V(k.gain * step.potential) : step.potential;
                if (to.summed) {
                    sum_gradient = sum_gradient + grad_x;
                    if (to.normalized) sum_product = sum_product + grad_x * centered[t];
                }
                put(to, n, grad_x, centered[t], t, i);
                if (Extras) add_to_tables(k, step, from + t, from - block + t, i);
                grad_v = dynamics.leaky ? V(k.leak * step.potential) : step.potential;
            }
            store(grad_v_ + i, grad_v);
            if (to.summed) {
                store(sum_gradient_ + i, sum_gradient);
                store(sum_product_ + i, sum_product);
            }
        }
    }

    // Writes the gradients of a step's currents and residual where they have a place of their own.
    static SNNFAST_HD void put(const Outputs& to, const Normalizer<V>& n, V grad_x, V centered, int t, i64 i) {
        Storage* const current = to.current + t * to.current_step;
        if (to.normalized) {
            if (to.current) {
                const V grad = to.deferred ? grad_x : gradient_through(n, grad_x, centered, to.batch);
                store_output(current, i, grad, to.how);
            }
            if (to.residual) store_output(to.residual + t * to.residual_step, i, grad_x, to.how);
        } else if (!to.summed) {
            store_output(current, i, grad_x, to.how);
        }
    }

    // Adds what a step contributes to the gradients of threshold and tau.
    SNNFAST_HD void add_to_tables(const Coefficients<V>& k, const StepGradient<V>& step, i64 at, i64 in_block, i64 i) {
        if (call_.grad_threshold) {
            add(sum_threshold_ + i, step.threshold);
            if (dynamics_.late)
                add(sum_threshold_ + i,
                    late_threshold_gradient(dynamics_, k, step.potential, potential_before(k, in_block, i)));
        }
        if (call_.grad_tau) {
            V current[1];
            currents_.from(at).read(current, i);
            add(sum_tau_ + i, tau_gradient(dynamics_, step.potential, potential_before(k, in_block, i), current[0]));
        }
    }

    // v_{t-1} of a step of this block, from the potential that was charged the step before.
    SNNFAST_HD V potential_before(const Coefficients<V>& k, i64 step, i64 i) const {
        if (step == 0) return load(block_initial_ + i);
        const V h = load(h_[step - 1] + i);
        return reset(dynamics_, k, h, fires(dynamics_, k, h));
    }

    // The gradients of what was held: sums over time, the current's through the normalization.
    void finish_held(const Tile& tile) {
        if (call_.layout.residual_held) keep_narrow(call_.grad_residual, tile);
        if (!call_.grad_current) return;
        if (currents_.normalizers.normalized()) {
            for (i64 i = 0; i < tile.span; i += lanes<Storage>) {
                const Normalizer<V> n = currents_.normalizers.at(i);
                const V centered = load(currents_.x.at(0) + i) - n.mean;
                store(v_ + i, gradient_through(n, load(sum_gradient_ + i), centered, currents_.normalizers.batch()));
            }
            keep_narrow(call_.grad_current, tile, v_);
        } else {
            keep_narrow(call_.grad_current, tile, sum_gradient_);
        }
    }

    void keep_narrow(void* to, const Tile& tile) { keep_narrow(to, tile, sum_gradient_); }
    static SNNFAST_ONCE_A_TILE void keep_narrow(void* to, const Tile& tile, const S* from) {
        if (!to) return;
        for (i64 i = 0; i < tile.count; ++i) static_cast<Storage*>(to)[tile.flat + i] = Narrow<Storage>::from(from[i]);
    }

    // The row of spikes that have no gradient.
    alignas(64) static constexpr Storage no_gradients[tile_length] = {};

    const BackwardCall& call_;
    const D dynamics_;
    TileCoefficients<S, Extras> coefficients_;
    const Writing writing_;
    TileCurrents<Storage, How> currents_;
    const S gamma_;
    const S beta_;
    TileRows<const Storage> grad_spikes_;
    TileRows<const S> grad_potential_;
    TileRows<Storage> grad_current_;
    TileRows<Storage> grad_residual_;
    Rows<const Storage> g_;
    Rows<const S> p_;
    Rows<Storage> out_;
    Rows<Storage> residual_;
    alignas(64) S h_[checkpoint_interval][rebuilt_length];
    alignas(64) S v_[tile_length] = {};
    alignas(64) S block_initial_[tile_length] = {};
    alignas(64) S grad_v_[tile_length] = {};
    alignas(64) S sum_gradient_[tile_length];
    alignas(64) S sum_product_[tile_length];
    alignas(64) S sum_threshold_[tile_length];
    alignas(64) S sum_tau_[tile_length];
};

}  // namespace

void backward(const BackwardCall& call, int threads) {
    const bool extras =
        call.dynamics.delay || call.dynamics.late || call.grad_potential || call.grad_threshold || call.grad_tau;
    with_storage(call.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_variant_of<Direction::backward>(call, extras, call.surrogate.shape, [&](auto known) {
            constexpr Variant v = decltype(known)::value;
            using D = typename DynamicsPolicy<v.dynamics>::template of<State<Storage>>;
            using Tiles = BackwardTiles<Storage, KnownLateness<D, v.extras>, v.currents, v.extras>;
            run_tiles<Storage, Tiles>(call, threads, [](Tiles& tiles, const Tile& tile) {
                tiles.template run<typename SurrogateOf<v.surrogate>::type>(tile);
            });
        });
    });
    if (call.sums) channel_sum(sums_of_neurons(call.dtype, call.layout, call.workspace, call.sums), threads);
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
