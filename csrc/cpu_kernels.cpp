// The CPU kernels, compiled once per instruction set (SNNFAST_TARGET names the namespace).
//
// A tile is a run of neighbouring neurons of one outer index, small enough for its potentials to stay in the caches.
// Within a tile a pass takes a few steps at once: each step is a stream of memory of its own, and processors follow
// only so many. Large outputs are written past the caches: nothing reads them before they would have been evicted.
#include "vec.h"

#include <initializer_list>
#include <type_traits>

#include "threads.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {
namespace {

constexpr i64 tile_length = 1024;
// Rows of rebuilt potentials do not start a multiple of 4096 bytes apart, as those of the tensors often do: all of them
// would then compete for the same few places of the first-level cache.
constexpr i64 rebuilt_length = tile_length + 64;
constexpr i64 prefetch_bytes = 1024;  // how far ahead: hardware does not follow rows that end with their tile
constexpr i64 streaming_threshold = i64(4) << 20;  // bytes of output
constexpr i64 serial_threshold = 1 << 15;          // neurons * steps below which a second thread costs more than it does

struct Tile {
    i64 outer;
    i64 first;  // inner index
    i64 count;
    i64 flat;  // of the first neuron
};

i64 tiles_per_outer(const Layout& layout) { return (layout.inner + tile_length - 1) / tile_length; }

Tile tile_at(const Layout& layout, i64 index) {
    const i64 per_outer = tiles_per_outer(layout);
    const i64 outer = index / per_outer;
    const i64 first = (index % per_outer) * tile_length;
    const i64 rest_of_row = layout.inner - first;
    return {outer, first, rest_of_row < tile_length ? rest_of_row : tile_length, outer * layout.inner + first};
}

template <class T>
T* row(T* data, const Strides& strides, const Tile& tile, i64 step) {
    return data ? data + tile.outer * strides.outer + step * strides.step + tile.first : nullptr;
}

// Streaming stores want whole, aligned vectors in every row.
template <class Storage>
bool may_stream(const void* data, const Layout& layout, const Strides& strides) {
    constexpr i64 bytes = sizeof(typename Packing<Storage>::Stored);
    const auto aligned = [](i64 elements) { return elements * i64(sizeof(Storage)) % bytes == 0; };
    return layout.neurons() * layout.steps * i64(sizeof(Storage)) >= streaming_threshold &&
           reinterpret_cast<unsigned long long>(data) % bytes == 0 && aligned(strides.step) &&
           (layout.outer == 1 || aligned(strides.outer));
}

// The coefficients of a tile's neurons: numbers, or with tables one value per neuron.
template <class S, bool WithTables>
class TileCoefficients {
    using V = Vector<S>;

public:
    TileCoefficients(const Dynamics& d, const Tables&, const Layout&)
        : numbers_{V{} + S(d.leak), V{} + S(d.gain), V{} + S(d.drive), V{} + S(d.threshold)} {}
    void enter(const Tile&) {}
    SNNFAST_HD const Coefficients<V>& at(i64) const { return numbers_; }

private:
    const Coefficients<V> numbers_;
};

template <class S>
class TileCoefficients<S, true> {
public:
    TileCoefficients(const Dynamics& d, const Tables& tables, const Layout& layout) : layout_(layout) {
        const void* const given[] = {tables.leak, tables.gain, tables.drive, tables.threshold};
        const double numbers[] = {d.leak, d.gain, d.drive, d.threshold};
        for (int k = 0; k < 4; ++k) {
            table_[k] = static_cast<const S*>(given[k]);
            number_[k] = S(numbers[k]);
        }
    }

    void enter(const Tile& tile) {
        i64 channel = tile.flat / layout_.channel_stride % layout_.channels;
        i64 until_next = layout_.channel_stride - tile.flat % layout_.channel_stride;
        for (i64 i = 0; i < tile.count; ++i) {
            for (int k = 0; k < 4; ++k) value_[k][i] = table_[k] ? table_[k][channel] : number_[k];
            if (--until_next == 0) {
                until_next = layout_.channel_stride;
                if (++channel == layout_.channels) channel = 0;
            }
        }
    }

    SNNFAST_HD Coefficients<Vector<S>> at(i64 i) const {
        const auto get = [&](int k) { return WholeVector{}.load(&value_[k][i]); };
        return {get(0), get(1), get(2), get(3)};
    }

private:
    const Layout& layout_;
    const S* table_[4];
    S number_[4];
    alignas(64) S value_[4][tile_length] = {};
};

template <class T>
SNNFAST_HD void prefetch(const T* at) {
    __builtin_prefetch(reinterpret_cast<const char*>(at) + prefetch_bytes);
}

template <class S>
void start_potential(S* v, const S* initial, S rest_value, const Tile& tile) {
    for (i64 i = 0; i < tile.count; ++i) v[i] = initial ? initial[tile.flat + i] : rest_value;
}

// Splits [first, last) into passes of 4, 2 and 1 steps, and calls pass(their number as a type, first step). A number of
// steps known to the compiler lets it load them all before it computes: a load behind a store of another tensor at the
// same offset into a page would wait for it.
template <class Pass>
SNNFAST_HD void for_each_pass(i64 first, i64 last, Pass pass) {
    for (; first + 4 <= last; first += 4) pass(std::integral_constant<int, 4>{}, first);
    if (first + 2 <= last) {
        pass(std::integral_constant<int, 2>{}, first);
        first += 2;
    }
    if (first < last) pass(std::integral_constant<int, 1>{}, first);
}

// What costs time in an inner loop is a policy: the dynamics where the compiler knows them, and Extras (coefficients
// per channel, delay, recorded potentials and their gradients, gradients of threshold and tau).
template <class Storage, class D, bool Extras>
class ForwardTiles {
    using S = State<Storage>;
    using V = Vector<S>;

public:
    explicit ForwardTiles(const ForwardCall& call)
        : call_(call), dynamics_(call.dynamics), coefficients_(call.dynamics, call.tables, call.layout),
          past_caches_(may_stream<Storage>(call.spikes, call.layout, call.layout.spikes)) {}

    void run(i64 index) {
        const Layout& layout = call_.layout;
        const Tile tile = tile_at(layout, index);
        coefficients_.enter(tile);
        start_potential(v_, static_cast<const S*>(call_.initial), S(rest(dynamics_)), tile);
        const i64 delay = call_.dynamics.delay;
        if (delay) std::memset(row(spikes(), layout.spikes, tile, 0), 0, tile.count * sizeof(Storage));
        for (i64 first = 0; first < layout.steps; first += checkpoint_interval) {
            if (first > 0 && call_.checkpoints) {
                const i64 kept = first / checkpoint_interval - 1;
                std::memcpy(static_cast<S*>(call_.checkpoints) + kept * layout.neurons() + tile.flat, v_,
                            tile.count * sizeof(S));
            }
            const i64 last = first + checkpoint_interval < layout.steps ? first + checkpoint_interval : layout.steps;
            for_each_pass(first, last, [&](auto steps, i64 from) { pass<steps()>(tile, from, delay); });
        }
        if (call_.last) std::memcpy(static_cast<S*>(call_.last) + tile.flat, v_, tile.count * sizeof(S));
        if (past_caches_) end_of_streaming();
    }

private:
    Storage* spikes() const { return static_cast<Storage*>(call_.spikes); }

    template <int Steps>
    void pass(const Tile& tile, i64 from, i64 delay) {
        const Layout& layout = call_.layout;
        const i64 x_step = layout.current.step, out_step = layout.spikes.step;
        const Storage* const x = row(static_cast<const Storage*>(call_.current), layout.current, tile, from);
        // The spike of step t goes to row t + delay; the last one has no row.
        Storage* const out = row(spikes(), layout.spikes, tile, from + delay);
        const i64 stored = from + Steps + delay > layout.steps ? Steps - delay : Steps;
        S* const potential = row(static_cast<S*>(call_.potential), layout.spikes, tile, from);
        const D dynamics = dynamics_;  // local: no store can be thought to change it
        for_each_vector<Storage>(tile.count, past_caches_, [&](auto width, i64 i) __attribute__((always_inline)) {
            const Coefficients<V>& k = coefficients_.at(i);
            V currents[Steps];
            for (int t = 0; t < Steps; ++t) {
                prefetch(x + t * x_step + i);
                currents[t] = width.load(x + t * x_step + i);
            }
            V v = WholeVector{}.load(v_ + i);
            for (int t = 0; t < Steps; ++t) {
                const V h = charge(dynamics, k, v, currents[t]);
                const auto fired = fires(dynamics, k, h);
                if (!Extras || t < stored) width.store_output(out + t * out_step + i, fired ? V{} + S(1) : V{});
                if (Extras && potential) width.store(potential + t * out_step + i, h);
                v = reset(dynamics, k, h, fired);
            }
            WholeVector{}.store(v_ + i, v);
        });
    }

    const ForwardCall& call_;
    const D dynamics_;
    TileCoefficients<S, Extras> coefficients_;
    const bool past_caches_;
    alignas(64) S v_[tile_length] = {};
};

template <class Storage, class D, class Surrogate, bool Extras>
class BackwardTiles {
    using S = State<Storage>;
    using V = Vector<S>;

public:
    explicit BackwardTiles(const BackwardCall& call)
        : call_(call), dynamics_(call.dynamics), coefficients_(call.dynamics, call.tables, call.layout),
          gamma_(S(call.surrogate.gamma)), beta_(S(call.surrogate.beta)),
          past_caches_(!call.layout.held &&
                       may_stream<Storage>(call.grad_current, call.layout, call.layout.grad_current)) {}

    void run(i64 index) {
        const Layout& layout = call_.layout;
        const Tile tile = tile_at(layout, index);
        coefficients_.enter(tile);
        start_potential(grad_v_, static_cast<const S*>(call_.grad_last), S(0), tile);
        for (S* sum : {sum_threshold_, sum_tau_, sum_current_}) std::memset(sum, 0, tile.count * sizeof(S));
        const i64 blocks = (layout.steps + checkpoint_interval - 1) / checkpoint_interval;
        for (i64 b = blocks - 1; b >= 0; --b) {
            const i64 first = b * checkpoint_interval;
            const i64 last = first + checkpoint_interval < layout.steps ? first + checkpoint_interval : layout.steps;
            const S* start = b == 0 ? static_cast<const S*>(call_.initial)
                                    : static_cast<const S*>(call_.checkpoints) + (b - 1) * layout.neurons();
            start_potential(block_v_, start, S(rest(dynamics_)), tile);
            std::memcpy(v_, block_v_, tile.count * sizeof(S));
            for_each_pass(first, last, [&](auto steps, i64 from) { rebuild<steps()>(tile, first, from); });
            for_each_pass(first, last, [&](auto steps, i64 from) {  // in reverse, from the last step to the first
                walk_back<steps()>(tile, first, first + last - steps() - from);
            });
        }
        if (layout.held) keep(static_cast<Storage*>(call_.grad_current), tile, sum_current_);
        keep(static_cast<S*>(call_.grad_initial), tile, grad_v_);
        keep(static_cast<S*>(call_.grad_threshold), tile, sum_threshold_);
        keep(static_cast<S*>(call_.grad_tau), tile, sum_tau_);
        if (past_caches_) end_of_streaming();
    }

private:
    template <int Steps>
    void rebuild(const Tile& tile, i64 block, i64 from) {
        const i64 x_step = call_.layout.current.step;
        const Storage* const x = row(static_cast<const Storage*>(call_.current), call_.layout.current, tile, from);
        S* const rebuilt = h_[from - block];
        const D dynamics = dynamics_;
        for_each_vector<Storage>(tile.count, false, [&](auto width, i64 i) __attribute__((always_inline)) {
            const Coefficients<V>& k = coefficients_.at(i);
            V currents[Steps];
            for (int t = 0; t < Steps; ++t) {
                prefetch(x + t * x_step + i);
                currents[t] = width.load(x + t * x_step + i);
            }
            V v = WholeVector{}.load(v_ + i);
            for (int t = 0; t < Steps; ++t) {
                const V h = charge(dynamics, k, v, currents[t]);
                WholeVector{}.store(rebuilt + t * rebuilt_length + i, h);
                v = reset(dynamics, k, h, fires(dynamics, k, h));
            }
            WholeVector{}.store(v_ + i, v);
        });
    }

    template <int Steps>
    void walk_back(const Tile& tile, i64 block, i64 from) {
        const Layout& layout = call_.layout;
        const i64 delay = Extras && call_.dynamics.delay;
        const i64 g_step = layout.grad_spikes.step, out_step = layout.grad_current.step;
        const Storage* const x = row(static_cast<const Storage*>(call_.current), layout.current, tile, from);
        const Storage* const g =
            row(static_cast<const Storage*>(call_.grad_spikes), layout.grad_spikes, tile, from + delay);
        // Steps whose spike was emitted and has a gradient.
        const i64 given = !g ? 0 : from + Steps + delay > layout.steps ? Steps - delay : Steps;
        const S* const p = row(static_cast<const S*>(call_.grad_potential), layout.grad_potential, tile, from);
        Storage* const out = row(static_cast<Storage*>(call_.grad_current), layout.grad_current, tile, from);
        const S* const rebuilt = h_[from - block];
        const D dynamics = dynamics_;
        const S gamma = gamma_, beta = beta_;
        const bool held = layout.held;
        for_each_vector<Storage>(tile.count, past_caches_, [&](auto width, i64 i) __attribute__((always_inline)) {
            const Coefficients<V>& k = coefficients_.at(i);
            V grad_spikes[Steps], potentials[Steps];
            for (int t = 0; t < Steps; ++t) {
                prefetch(g + t * g_step + i);
                grad_spikes[t] = t < given ? width.load(g + t * g_step + i) : V{};
                potentials[t] = WholeVector{}.load(rebuilt + t * rebuilt_length + i);
            }
            V grad_v = WholeVector{}.load(grad_v_ + i);
            for (int t = Steps - 1; t >= 0; --t) {
                V grad_recorded{};
                if (Extras && p) grad_recorded = width.load(p + t * layout.grad_potential.step + i);
                const StepGradient<V> step =
                    step_gradient<Surrogate>(
                    dynamics, k, gamma, beta, potentials[t], grad_spikes[t], grad_recorded, grad_v);
                const V delta = step.potential;
                const V grad_x = dynamics.leaky ? V(k.gain * delta) : delta;
                if (held)
                    add(sum_current_ + i, grad_x);
                else
                    width.store_output(out + t * out_step + i, grad_x);
                if (Extras && call_.grad_threshold) add(sum_threshold_ + i, step.threshold);
                if (Extras && call_.grad_tau) {
                    const V v_before = potential_before(k, from - block + t, i);
                    const V current = width.load(x + t * layout.current.step + i);
                    add(sum_tau_ + i, tau_gradient(dynamics, delta, v_before, current));
                }
                grad_v = dynamics.leaky ? V(k.leak * delta) : delta;
            }
            WholeVector{}.store(grad_v_ + i, grad_v);
        });
    }

    // v_{t-1} of a step of this block, from the potential that was charged the step before.
    SNNFAST_HD V potential_before(const Coefficients<V>& k, i64 step, i64 i) const {
        if (step == 0) return WholeVector{}.load(block_v_ + i);
        const V h = WholeVector{}.load(h_[step - 1] + i);
        return reset(dynamics_, k, h, fires(dynamics_, k, h));
    }

    SNNFAST_HD static void add(S* sum, V value) {
        WholeVector{}.store(sum, V(WholeVector{}.load(sum) + value));
    }

    template <class Kept>
    static void keep(Kept* to, const Tile& tile, const S* from) {
        if (!to) return;
        for_each_vector<Kept>(tile.count, false, [&](auto width, i64 i) __attribute__((always_inline)) {
            width.store(to + tile.flat + i, WholeVector{}.load(from + i));
        });
    }

    const BackwardCall& call_;
    const D dynamics_;
    TileCoefficients<S, Extras> coefficients_;
    const S gamma_;
    const S beta_;
    const bool past_caches_;
    alignas(64) S h_[checkpoint_interval][rebuilt_length];
    alignas(64) S v_[tile_length] = {};
    alignas(64) S block_v_[tile_length] = {};
    alignas(64) S grad_v_[tile_length] = {};
    alignas(64) S sum_current_[tile_length];
    alignas(64) S sum_threshold_[tile_length];
    alignas(64) S sum_tau_[tile_length];
};

template <class Tiles, class Call>
void run_tiles(const Call& call, int threads) {
    const i64 count = call.layout.outer * tiles_per_outer(call.layout);
    const bool serial = call.layout.neurons() * call.layout.steps < serial_threshold;
    parallel_for(count, serial ? 1 : threads, [&](i64 first, i64 last) {
        Tiles tiles(call);
        for (i64 index = first; index < last; ++index) tiles.run(index);
    });
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

}  // namespace

void forward_on_cpu(const ForwardCall& call, int threads) {
    const bool extras = any_table(call.tables) || call.dynamics.delay || call.potential;
    with_storage(call.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        using S = State<Storage>;
        if (extras)
            run_tiles<ForwardTiles<Storage, General<S>, true>>(call, threads);
        else if (is_hard_detached(call.dynamics))
            run_tiles<ForwardTiles<Storage, HardDetached<S>, false>>(call, threads);
        else if (is_soft_attached(call.dynamics))
            run_tiles<ForwardTiles<Storage, SoftAttached<S>, false>>(call, threads);
        else
            run_tiles<ForwardTiles<Storage, General<S>, false>>(call, threads);
    });
}

void backward_on_cpu(const BackwardCall& call, int threads) {
    const bool extras = any_table(call.tables) || call.dynamics.delay || call.grad_potential || call.grad_threshold ||
                        call.grad_tau;
    const bool fast_sigmoid = call.surrogate.shape == Shape::fast_sigmoid;
    with_storage(call.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        using S = State<Storage>;
        if (!extras && fast_sigmoid && is_hard_detached(call.dynamics))
            return run_tiles<BackwardTiles<Storage, HardDetached<S>, FastSigmoid, false>>(call, threads);
        if (!extras && fast_sigmoid && is_soft_attached(call.dynamics))
            return run_tiles<BackwardTiles<Storage, SoftAttached<S>, FastSigmoid, false>>(call, threads);
        with_shape(call.surrogate.shape, [&](auto shape) {
            using Surrogate = decltype(shape);
            if (extras)
                run_tiles<BackwardTiles<Storage, General<S>, Surrogate, true>>(call, threads);
            else
                run_tiles<BackwardTiles<Storage, General<S>, Surrogate, false>>(call, threads);
        });
    });
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
