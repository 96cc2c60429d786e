// The CPU kernels, compiled once per instruction set (SNNFAST_TARGET names the namespace).
//
// Within a tile a pass takes a few steps at once: each step is a stream of memory of its own, and processors follow
// only so many. Outputs too large for the caches are written past them: nothing reads them before they would have been
// evicted.
#include <initializer_list>

#include "cpu_kernels.h"
#include "cpu_moments.h"
#include "cpu_sums.h"
#include "cpu_tiles.h"
#include "threads.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {
namespace {

// Rows of rebuilt potentials do not start a multiple of 4096 bytes apart, as those of the tensors often do: all of them
// would then compete for the same few places of the first-level cache.
constexpr i64 rebuilt_length = tile_length + 64;

// Whether an output of this size goes past the caches. Streaming stores want whole, aligned vectors in every row.
template <class Storage>
bool may_stream(const void* data, const Layout& layout, const Strides& strides) {
    constexpr i64 bytes = sizeof(typename Packing<Storage>::Stored);
    const auto aligned = [](i64 elements) { return elements * i64(sizeof(Storage)) % bytes == 0; };
    return layout.neurons() * layout.steps * i64(sizeof(Storage)) >= cpu::streaming_threshold() &&
           reinterpret_cast<unsigned long long>(data) % bytes == 0 && aligned(strides.step) &&
           (layout.outer == 1 || aligned(strides.outer));
}

template <class S>
SNNFAST_ONCE_A_TILE void start_state(S* v, const S* initial, S otherwise, const Tile& tile) {
    for (i64 i = 0; i < tile.count; ++i) v[i] = initial ? initial[tile.flat + i] : otherwise;
    for (i64 i = tile.count; i < tile.span; ++i) v[i] = S(0);
}

// Adds into an array of a tile's sums.
template <class S>
SNNFAST_HD void add(S* sum, Vector<S> value) {
    store(sum, Vector<S>(load(sum) + value));
}

// The currents of a pass, as the neurons integrate them.
template <class Storage, Currents How>
class TileCurrents {
    using S = State<Storage>;
    using V = Vector<S>;

public:
    template <class Call>
    explicit TileCurrents(const Call& call)
        : normalizers(call.normalization, call.layout),
          current_(static_cast<const Storage*>(call.current), call.layout.current, call.layout.steps, lanes<Storage>),
          residual_(static_cast<const Storage*>(call.normalization.residual), call.layout.residual, call.layout.steps,
                    lanes<Storage>) {}

    void enter(const Tile& tile) {
        normalizers.enter(tile);
        x = current_.enter(tile);
        residual = residual_.enter(tile);
    }

    template <int Steps>
    SNNFAST_HD void read(V (&to)[Steps], i64 from, i64 i) const {
        for (int t = 0; t < Steps; ++t) {
            const Storage* const at = x.first + (from + t) * x.step + i;
            prefetch(at);
            to[t] = load(at);
        }
        if (normalizers.normalized()) {
            const Normalizer<V> n = normalizers.at(i);
            for (int t = 0; t < Steps; ++t) to[t] = normalize(n, to[t]);
            if (residual) {
                for (int t = 0; t < Steps; ++t) {
                    const Storage* const at = residual.first + (from + t) * residual.step + i;
                    prefetch(at);
                    to[t] = to[t] + load(at);
                }
            }
        }
    }

    TileNormalizers<S, How> normalizers;
    Rows<const Storage> x;
    Rows<const Storage> residual;

private:
    TileRows<const Storage> current_;
    TileRows<const Storage> residual_;
};

// What costs time in an inner loop is a policy: the dynamics where the compiler knows them, normalized currents, and
// Extras (coefficients per channel, delay, recorded potentials and their gradients, gradients of threshold and tau).
template <class Storage, class D, Currents How, bool Extras>
class ForwardTiles {
    using S = State<Storage>;
    using V = Vector<S>;

public:
    explicit ForwardTiles(const ForwardCall& call)
        : call_(call), dynamics_(call.dynamics), coefficients_(call.dynamics, call.tables, call.layout),
          currents_(call),
          spikes_(static_cast<Storage*>(call.spikes), call.layout.spikes, call.layout.steps, lanes<Storage>),
          potential_(static_cast<S*>(call.potential), call.layout.spikes, call.layout.steps, lanes<Storage>),
          may_stream_(may_stream<Storage>(call.spikes, call.layout, call.layout.spikes)) {}

    void run(const Tile& tile) {
        const Layout& layout = call_.layout;
        coefficients_.enter(tile);
        currents_.enter(tile);
        out_ = spikes_.enter(tile);
        recorded_ = potential_.enter(tile);
        start_state(v_, static_cast<const S*>(call_.initial), S(rest(dynamics_)), tile);
        if (call_.dynamics.delay) std::memset(out_.at(0), 0, tile.span * sizeof(Storage));
        for (i64 first = 0; first < layout.steps; first += checkpoint_interval) {
            if (first > 0 && call_.checkpoints) {
                const i64 kept = first / checkpoint_interval - 1;
                keep(static_cast<S*>(call_.checkpoints) + kept * layout.neurons(), tile, v_);
            }
            const i64 last = first + checkpoint_interval < layout.steps ? first + checkpoint_interval : layout.steps;
            for_each_pass<pass_steps<Extras>>(first, last, [&](auto steps, i64 from) { pass<steps()>(tile, from); });
        }
        keep(call_.last, tile, v_);
        spikes_.leave(tile);
        potential_.leave(tile);
        if (may_stream_) end_of_streaming();
    }

private:
    template <int Steps>
    void pass(const Tile& tile, i64 from) {
        // The spike of step t goes to row t + delay; the last one has no row.
        const i64 delay = Extras && call_.dynamics.delay;
        const i64 stored = from + Steps + delay > call_.layout.steps ? Steps - delay : Steps;
        Storage* const out = out_.at(from + delay);
        S* const potential = recorded_.at(from);
        const i64 out_step = out_.step, potential_step = recorded_.step;
        const bool past_caches = may_stream_ && !tile.staged;
        const D dynamics = dynamics_;  // local: no store can be thought to change it
        for (i64 i = 0; i < tile.span; i += lanes<Storage>) {
            const Coefficients<V>& k = coefficients_.at(i);
            V currents[Steps];
            currents_.read(currents, from, i);
            V v = load(v_ + i);
            for (int t = 0; t < Steps; ++t) {
                const V h = charge(dynamics, k, v, currents[t]);
                const auto fired = fires(dynamics, k, h);
                if (!Extras || t < stored) store_output(out + t * out_step + i, fired ? V{} + S(1) : V{}, past_caches);
                if (Extras && potential) store(potential + t * potential_step + i, h);
                v = reset(dynamics, k, h, fired);
            }
            store(v_ + i, v);
        }
    }

    const ForwardCall& call_;
    const D dynamics_;
    TileCoefficients<S, Extras> coefficients_;
    TileCurrents<Storage, How> currents_;
    TileRows<Storage> spikes_;
    TileRows<S> potential_;
    Rows<Storage> out_;
    Rows<S> recorded_;
    const bool may_stream_;
    alignas(64) S v_[tile_length] = {};
};

// Of the backward pass, `walk_back` alone knows the surrogate: everything else is compiled once for all of them.
template <class Storage, class D, Currents How, bool Extras>
class BackwardTiles {
    using S = State<Storage>;
    using V = Vector<S>;
    static constexpr int most = pass_steps<Extras>;

public:
    SNNFAST_ONCE_A_TILE explicit BackwardTiles(const BackwardCall& call)
        : call_(call), dynamics_(call.dynamics), coefficients_(call.dynamics, call.tables, call.layout),
          currents_(call), gamma_(S(call.surrogate.gamma)), beta_(S(call.surrogate.beta)),
          grad_spikes_(static_cast<const Storage*>(call.grad_spikes), call.layout.grad_spikes, call.layout.steps,
                       lanes<Storage>),
          grad_potential_(static_cast<const S*>(call.grad_potential), call.layout.grad_potential, call.layout.steps,
                          lanes<Storage>),
          grad_current_(call.layout.held ? nullptr : static_cast<Storage*>(call.grad_current), call.layout.grad_current,
                        call.layout.steps, lanes<Storage>),
          grad_residual_(call.layout.residual_held ? nullptr : static_cast<Storage*>(call.grad_residual),
                         call.layout.grad_current, call.layout.steps, lanes<Storage>),
          may_stream_(may_stream<Storage>(call.grad_current, call.layout, call.layout.grad_current) &&
                      may_stream<Storage>(call.grad_residual, call.layout, call.layout.grad_current)) {}

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
            for_each_pass<most>(first, fresh, [&](auto steps, i64 from) {  // in reverse, from last to first
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
        start_state(grad_v_, static_cast<const S*>(call_.grad_last), S(0), tile);
        for (S* sum : {sum_threshold_, sum_tau_, sum_gradient_, sum_product_})
            std::memset(sum, 0, tile.span * sizeof(S));
    }

    SNNFAST_ONCE_A_TILE void leave(const Tile& tile) {
        grad_current_.leave(tile);
        grad_residual_.leave(tile);
        if (call_.layout.held) finish_held(tile);
        keep(call_.grad_initial, tile, grad_v_);
        keep(call_.grad_threshold, tile, sum_threshold_);
        keep(call_.grad_tau, tile, sum_tau_);
        keep(call_.sum_gradient, tile, sum_gradient_);
        keep(call_.sum_product, tile, sum_product_);
        if (may_stream_) end_of_streaming();
    }

    // The potentials of a block's steps before the one returned. The last pass is walked back as it is rebuilt: its
    // potentials need not leave the registers.
    SNNFAST_ONCE_A_TILE i64 rebuild_block(const Tile& tile, i64 first, i64 last) {
        const i64 b = first / checkpoint_interval;
        const S* start = b == 0 ? static_cast<const S*>(call_.initial)
                                : static_cast<const S*>(call_.checkpoints) + (b - 1) * call_.layout.neurons();
        start_state(block_v_, start, S(rest(dynamics_)), tile);
        std::memcpy(v_, block_v_, tile.span * sizeof(S));
        const i64 fresh = !Extras && last - first >= most ? last - most : last;
        for_each_pass<most>(first, fresh, [&](auto steps, i64 from) { rebuild<steps()>(tile, first, from); });
        return fresh;
    }

    // The charged potentials of a pass's steps; the potential after them is kept for the next pass.
    template <int Steps>
    SNNFAST_HD void rebuild_vector(V (&h)[Steps], const Coefficients<V>& k, i64 from, i64 i) {
        const D dynamics = dynamics_;
        V currents[Steps];
        currents_.read(currents, from, i);
        V v = load(v_ + i);
        for (int t = 0; t < Steps; ++t) {
            h[t] = charge(dynamics, k, v, currents[t]);
            v = reset(dynamics, k, h[t], fires(dynamics, k, h[t]));
        }
        store(v_ + i, v);
    }

    template <int Steps>
    void rebuild(const Tile& tile, i64 block, i64 from) {
        S* const rebuilt = h_[from - block];
        for (i64 i = 0; i < tile.span; i += lanes<Storage>) {
            V h[Steps];
            rebuild_vector(h, coefficients_.at(i), from, i);
            for (int t = 0; t < Steps; ++t) store(rebuilt + t * rebuilt_length + i, h[t]);
        }
    }

    template <class Surrogate, int Steps, bool Fresh>
    void walk_back(const Tile& tile, i64 block, i64 from) {
        const i64 delay = Extras && call_.dynamics.delay;
        // Steps whose spike was emitted and has a gradient.
        const i64 given = !g_ ? 0 : from + Steps + delay > call_.layout.steps ? Steps - delay : Steps;
        const Storage* const x = currents_.x.at(from);
        const Storage* const g = g_.at(from + delay);
        const S* const p = p_.at(from);
        Storage* const out = out_.at(from);
        Storage* const residual = residual_.at(from);
        const i64 x_step = currents_.x.step, g_step = g_.step, p_step = p_.step, out_step = out_.step;
        const i64 residual_step = residual_.step;
        const S* const rebuilt = h_[from - block];
        const D dynamics = dynamics_;
        const S gamma = gamma_, beta = beta_;
        const bool past_caches = may_stream_ && !tile.staged;
        const bool normalized = currents_.normalizers.normalized(), batch = currents_.normalizers.batch();
        // Sums over time: of the gradients of a held current, and for the gradients of the batch's statistics.
        const bool summed = normalized ? call_.layout.held || call_.sum_gradient : call_.layout.held;
        for (i64 i = 0; i < tile.span; i += lanes<Storage>) {
            const Coefficients<V>& k = coefficients_.at(i);
            V grad_spikes[Steps], potentials[Steps];
            for (int t = 0; t < Steps; ++t) {
                prefetch(g + t * g_step + i);
                grad_spikes[t] = t < given ? load(g + t * g_step + i) : V{};
                if (!Fresh) potentials[t] = load(rebuilt + t * rebuilt_length + i);
            }
            if (Fresh) rebuild_vector(potentials, k, from, i);
            V centered[Steps];
            const Normalizer<V> n = currents_.normalizers.at(i);
            if (normalized) {
                for (int t = 0; t < Steps; ++t) centered[t] = load(x + t * x_step + i) - n.mean;
            }
            V grad_v = load(grad_v_ + i);
            V sum_gradient{}, sum_product{};
            if (summed) {
                sum_gradient = load(sum_gradient_ + i);
                sum_product = load(sum_product_ + i);
            }
            for (int t = Steps - 1; t >= 0; --t) {
                V grad_recorded{};
                if (Extras && p) grad_recorded = load(p + t * p_step + i);
                const StepGradient<V> step = step_gradient<Surrogate>(dynamics, k, gamma, beta, potentials[t],
                                                                      grad_spikes[t], grad_recorded, grad_v);
                const V delta = step.potential;
                const V grad_x = dynamics.leaky ? V(k.gain * delta) : delta;
                if (summed) {
                    sum_gradient = sum_gradient + grad_x;
                    if (normalized) sum_product = sum_product + grad_x * centered[t];
                }
                if (normalized) {
                    if (out)
                        store_output(out + t * out_step + i, gradient_through(n, grad_x, centered[t], batch),
                                     past_caches);
                    if (residual) store_output(residual + t * residual_step + i, grad_x, past_caches);
                } else if (!summed) {
                    store_output(out + t * out_step + i, grad_x, past_caches);
                }
                if (Extras && call_.grad_threshold) add(sum_threshold_ + i, step.threshold);
                if (Extras && call_.grad_tau) {
                    V current[1];
                    currents_.read(current, from + t, i);
                    const V v_before = potential_before(k, from - block + t, i);
                    add(sum_tau_ + i, tau_gradient(dynamics, delta, v_before, current[0]));
                }
                grad_v = dynamics.leaky ? V(k.leak * delta) : delta;
            }
            store(grad_v_ + i, grad_v);
            if (summed) {
                store(sum_gradient_ + i, sum_gradient);
                store(sum_product_ + i, sum_product);
            }
        }
    }

    // v_{t-1} of a step of this block, from the potential that was charged the step before.
    SNNFAST_HD V potential_before(const Coefficients<V>& k, i64 step, i64 i) const {
        if (step == 0) return load(block_v_ + i);
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

    const BackwardCall& call_;
    const D dynamics_;
    TileCoefficients<S, Extras> coefficients_;
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
    const bool may_stream_;
    alignas(64) S h_[checkpoint_interval][rebuilt_length];
    alignas(64) S v_[tile_length] = {};
    alignas(64) S block_v_[tile_length] = {};
    alignas(64) S grad_v_[tile_length] = {};
    alignas(64) S sum_gradient_[tile_length];
    alignas(64) S sum_product_[tile_length];
    alignas(64) S sum_threshold_[tile_length];
    alignas(64) S sum_tau_[tile_length];
};

template <class Storage, class Tiles, class Call, class Run>
void run_tiles(const Call& call, int threads, Run run) {
    const i64 count = call.layout.outer * tiles_per_outer(call.layout);
    const bool serial = call.layout.neurons() * call.layout.steps < serial_threshold;
    parallel_for(count, serial ? 1 : threads, [&](i64 first, i64 last) {
        Tiles tiles(call);
        for (i64 index = first; index < last; ++index)
            for_each_part<Storage>(call.layout, index, [&](const Tile& tile) { run(tiles, tile); });
    });
}

template <class Storage, class Tiles, class Call>
void run_tiles(const Call& call, int threads) {
    run_tiles<Storage, Tiles>(call, threads, [](Tiles& tiles, const Tile& tile) { tiles.run(tile); });
}

template <class Use>
void with_storage(DType dtype, Use use) {
    switch (dtype) {
        case DType::float32: return use(float{});
        case DType::float64: return use(double{});
        case DType::float16: return use(float16{});
        case DType::bfloat16: return use(bfloat16{});
    }
}

bool any_table(const Tables& tables) { return tables.threshold || tables.leak || tables.gain || tables.drive; }

// Calls `use` with the policies of a call: dynamics, how currents are read, extras. `usual`: nothing about the
// surrogate asks for the kernels that can do everything.
template <class S, class Call, class Use>
void with_policies(const Call& call, bool extras, bool usual, Use use) {
    using Plain = std::integral_constant<Currents, Currents::plain>;
    using Normalized = std::integral_constant<Currents, Currents::normalized>;
    using Any = std::integral_constant<Currents, Currents::any>;
    if (extras || (call.normalization.mean && !usual)) return use(General<S>(call.dynamics), Any{}, std::true_type{});
    const auto with_dynamics = [&](auto how) {
        if (usual && is_hard_detached(call.dynamics))
            use(HardDetached<S>(call.dynamics), how, std::false_type{});
        else if (usual && is_soft_attached(call.dynamics))
            use(SoftAttached<S>(call.dynamics), how, std::false_type{});
        else
            use(General<S>(call.dynamics), how, std::false_type{});
    };
    if (call.normalization.mean)
        with_dynamics(Normalized{});
    else
        with_dynamics(Plain{});
}

}  // namespace

void forward_on_cpu(const ForwardCall& call, int threads) {
    const bool extras = any_table(call.tables) || call.dynamics.delay || call.potential;
    with_storage(call.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_policies<State<Storage>>(call, extras, true, [&](auto dynamics, auto how, auto with_extras) {
            run_tiles<Storage, ForwardTiles<Storage, decltype(dynamics), how(), with_extras()>>(call, threads);
        });
    });
}

void backward_on_cpu(const BackwardCall& call, int threads) {
    const bool extras =
        any_table(call.tables) || call.dynamics.delay || call.grad_potential || call.grad_threshold || call.grad_tau;
    const bool fast_sigmoid = call.surrogate.shape == Shape::fast_sigmoid;
    with_storage(call.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_policies<State<Storage>>(call, extras, fast_sigmoid, [&](auto dynamics, auto how, auto with_extras) {
            using D = decltype(dynamics);
            const auto run = [&](auto shape) {
                using Tiles = BackwardTiles<Storage, D, how(), with_extras()>;
                run_tiles<Storage, Tiles>(
                    call, threads, [](Tiles& tiles, const Tile& tile) { tiles.template run<decltype(shape)>(tile); });
            };
            // Kernels that know the dynamics or normalize know the surrogate too: each kind more is build time.
            if constexpr (with_extras() || (std::is_same_v<D, General<State<Storage>>> && how() == Currents::plain))
                with_shape(call.surrogate.shape, run);
            else
                run(FastSigmoid{});
        });
    });
}

void moments_on_cpu(const MomentsCall& call, int threads) {
    with_storage(call.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        run_tiles<Storage, MomentsTiles<Storage>>(call, threads);
    });
}

void channel_sum_on_cpu(const ChannelSumCall& call, int threads) {
    if (call.dtype == DType::float64)
        sum_channels<double>(call, threads);
    else
        sum_channels<float>(call, threads);
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
