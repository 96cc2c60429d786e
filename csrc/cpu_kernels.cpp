// The CPU kernels, compiled once per instruction set (SNNFAST_TARGET names the namespace).
//
// A tile is a run of neighbouring neurons of one outer index, small enough for its potentials to stay in the caches.
// Within a tile a pass takes a few steps at once: each step is a stream of memory of its own, and processors follow
// only so many. Large outputs are written past the caches: nothing reads them before they would have been evicted.
#include "vec.h"

#include <initializer_list>

#include "threads.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {
namespace {

constexpr i64 tile_length = 1024;
constexpr i64 steps_per_pass = 5;
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

// The coefficients of a tile's neurons: numbers, or where a table is given, one value per neuron.
template <class S>
class TileCoefficients {
public:
    TileCoefficients(const Dynamics& d, const Tables& tables, const Layout& layout) : layout_(layout) {
        const void* const given[] = {tables.leak, tables.gain, tables.drive, tables.threshold};
        const double numbers[] = {d.leak, d.gain, d.drive, d.threshold};
        for (int k = 0; k < 4; ++k) {
            table_[k] = static_cast<const S*>(given[k]);
            any_table_ = any_table_ || table_[k];
            number_[k] = S(numbers[k]);
        }
    }

    void enter(const Tile& tile) {
        if (!any_table_) return;
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
        const auto get = [&](int k) {
            return any_table_ ? WholeVector{}.load(&value_[k][i]) : Vector<S>{} + number_[k];
        };
        return {get(0), get(1), get(2), get(3)};
    }

private:
    const Layout& layout_;
    const S* table_[4];
    S number_[4];
    bool any_table_ = false;
    alignas(64) S value_[4][tile_length] = {};
};

template <class S>
void start_potential(S* v, const S* initial, S rest_value, const Tile& tile) {
    for (i64 i = 0; i < tile.count; ++i) v[i] = initial ? initial[tile.flat + i] : rest_value;
}

// Splits [first, last) into passes of nearly equal length, so that 16 steps are 4 + 4 + 4 + 4, not 5 + 5 + 5 + 1.
template <class Pass>
SNNFAST_HD void for_each_pass(i64 first, i64 last, Pass pass) {
    const i64 count = (last - first + steps_per_pass - 1) / steps_per_pass;
    for (i64 p = 0; p < count; ++p) pass(first + (last - first) * p / count, first + (last - first) * (p + 1) / count);
}

template <class Storage, class D>
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
            for_each_pass(first, last, [&](i64 from, i64 to) { pass(tile, from, to, delay); });
        }
        if (call_.last) std::memcpy(static_cast<S*>(call_.last) + tile.flat, v_, tile.count * sizeof(S));
        if (past_caches_) end_of_streaming();
    }

private:
    Storage* spikes() const { return static_cast<Storage*>(call_.spikes); }

    void pass(const Tile& tile, i64 from, i64 to, i64 delay) {
        const Layout& layout = call_.layout;
        const Storage* x = row(static_cast<const Storage*>(call_.current), layout.current, tile, from);
        // The spike of step t goes to row t + delay; the last one has no row.
        Storage* out = row(spikes(), layout.spikes, tile, from + delay);
        const i64 stored = (to + delay > layout.steps ? layout.steps - delay : to) - from;
        S* potential = call_.potential ? row(static_cast<S*>(call_.potential), layout.spikes, tile, from) : nullptr;
        for_each_vector<Storage>(tile.count, [&](auto width, i64 i) __attribute__((always_inline)) {
            const Coefficients<V> k = coefficients_.at(i);
            V v = WholeVector{}.load(v_ + i);
            for (i64 t = 0; t < to - from; ++t) {
                const V h = charge(dynamics_, k, v, width.load(x + t * layout.current.step + i));
                const auto fired = fires(dynamics_, k, h);
                if (t < stored)
                    width.store(out + t * layout.spikes.step + i, fired ? V{} + S(1) : V{}, past_caches_);
                if (potential) width.store(potential + t * layout.spikes.step + i, h);
                v = reset(dynamics_, k, h, fired);
            }
            WholeVector{}.store(v_ + i, v);
        });
    }

    const ForwardCall& call_;
    const D dynamics_;
    TileCoefficients<S> coefficients_;
    const bool past_caches_;
    alignas(64) S v_[tile_length] = {};
};

template <class Storage, class D, class Surrogate>
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
            for_each_pass(first, last, [&](i64 from, i64 to) { rebuild(tile, first, from, to); });
            for_each_pass(first, last, [&](i64 from, i64 to) {  // from the last pass to the first
                walk_back(tile, first, first + last - to, first + last - from);
            });
        }
        if (layout.held) keep(static_cast<Storage*>(call_.grad_current), tile, sum_current_);
        keep(static_cast<S*>(call_.grad_initial), tile, grad_v_);
        keep(static_cast<S*>(call_.grad_threshold), tile, sum_threshold_);
        keep(static_cast<S*>(call_.grad_tau), tile, sum_tau_);
        if (past_caches_) end_of_streaming();
    }

private:
    void rebuild(const Tile& tile, i64 block, i64 from, i64 to) {
        const Strides& strides = call_.layout.current;
        const Storage* x = row(static_cast<const Storage*>(call_.current), strides, tile, from);
        for_each_vector<Storage>(tile.count, [&](auto width, i64 i) __attribute__((always_inline)) {
            const Coefficients<V> k = coefficients_.at(i);
            V v = WholeVector{}.load(v_ + i);
            for (i64 t = 0; t < to - from; ++t) {
                const V h = charge(dynamics_, k, v, width.load(x + t * strides.step + i));
                WholeVector{}.store(h_[from - block + t] + i, h);
                v = reset(dynamics_, k, h, fires(dynamics_, k, h));
            }
            WholeVector{}.store(v_ + i, v);
        });
    }

    void walk_back(const Tile& tile, i64 block, i64 from, i64 to) {
        const Layout& layout = call_.layout;
        const i64 delay = call_.dynamics.delay;
        const Storage* x = row(static_cast<const Storage*>(call_.current), layout.current, tile, from);
        const Storage* g = row(static_cast<const Storage*>(call_.grad_spikes), layout.grad_spikes, tile, from + delay);
        const i64 given = call_.grad_spikes ? layout.steps - delay - from : 0;  // steps whose spike was emitted
        const S* p = row(static_cast<const S*>(call_.grad_potential), layout.grad_potential, tile, from);
        Storage* out = row(static_cast<Storage*>(call_.grad_current), layout.grad_current, tile, from);
        for_each_vector<Storage>(tile.count, [&](auto width, i64 i) __attribute__((always_inline)) {
            const Coefficients<V> k = coefficients_.at(i);
            V grad_v = WholeVector{}.load(grad_v_ + i);
            for (i64 t = to - from - 1; t >= 0; --t) {
                const V h = WholeVector{}.load(h_[from - block + t] + i);
                const V grad_spike = t < given ? width.load(g + t * layout.grad_spikes.step + i) : V{};
                const V grad_recorded =
                    call_.grad_potential ? width.load(p + t * layout.grad_potential.step + i) : V{};
                const StepGradient<V> step =
                    step_gradient<Surrogate>(dynamics_, k, gamma_, beta_, h, grad_spike, grad_recorded, grad_v);
                const V delta = step.potential;
                const V grad_x = dynamics_.leaky ? V(k.gain * delta) : delta;
                if (layout.held)
                    add(sum_current_ + i, grad_x);
                else
                    width.store(out + t * layout.grad_current.step + i, grad_x, past_caches_);
                if (call_.grad_threshold) add(sum_threshold_ + i, step.threshold);
                if (call_.grad_tau) {
                    const V v_before = potential_before(k, from - block + t, i);
                    const V current = width.load(x + t * layout.current.step + i);
                    add(sum_tau_ + i, tau_gradient(dynamics_, delta, v_before, current));
                }
                grad_v = dynamics_.leaky ? V(k.leak * delta) : delta;
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
        for_each_vector<Kept>(tile.count, [&](auto width, i64 i) __attribute__((always_inline)) {
            width.store(to + tile.flat + i, WholeVector{}.load(from + i));
        });
    }

    const BackwardCall& call_;
    const D dynamics_;
    TileCoefficients<S> coefficients_;
    const S gamma_;
    const S beta_;
    const bool past_caches_;
    alignas(64) S h_[checkpoint_interval][tile_length];
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

}  // namespace

void forward_on_cpu(const ForwardCall& call, int threads) {
    with_storage(call.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        run_tiles<ForwardTiles<Storage, General<State<Storage>>>>(call, threads);
    });
}

void backward_on_cpu(const BackwardCall& call, int threads) {
    with_storage(call.dtype, [&](auto storage) {
        with_shape(call.surrogate.shape, [&](auto shape) {
            using Storage = decltype(storage);
            run_tiles<BackwardTiles<Storage, General<State<Storage>>, decltype(shape)>>(call, threads);
        });
    });
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
