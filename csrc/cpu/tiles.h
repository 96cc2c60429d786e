// How the CPU kernels go through a tensor: in tiles of neighbouring neurons of one outer index, small enough for their
// potentials to stay in the caches, each tile in passes of a few steps.
//
// Kernels see whole vectors only. What is left at the end of a row, less than a vector, is copied into columns of a
// vector's width, run as a tile of its own, and copied back: one loop body serves all sizes.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/threads.h"
#include "cpu/tuning.h"
#include "cpu/vec.h"
#include "math/normalization.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

struct Tile {
    i64 outer;
    i64 first;  // inner index
    i64 count;  // neurons
    i64 span;   // the same in whole vectors
    i64 flat;   // of the first neuron
    bool staged;
};

inline i64 tiles_per_outer(const Layout& layout) { return (layout.inner + tile_length - 1) / tile_length; }

// Calls run(tile) for the whole vectors of a tile, and for the shorter one at its end.
template <class Storage, class Run>
void for_each_part(const Layout& layout, i64 index, Run run) {
    const i64 per_outer = tiles_per_outer(layout);
    const i64 outer = index / per_outer;
    const i64 first = (index % per_outer) * tile_length;
    const i64 rest_of_row = layout.inner - first;
    const i64 count = rest_of_row < tile_length ? rest_of_row : tile_length;
    const i64 whole = count - count % lanes<Storage>;
    const i64 flat = outer * layout.inner + first;
    if (whole > 0) run(Tile{outer, first, whole, whole, flat, false});
    if (whole < count) run(Tile{outer, first + whole, count - whole, lanes<Storage>, flat + whole, true});
}

// What runs once a tile is kept out of the kernels that call it: copies of it would be most of what is compiled.
#define SNNFAST_ONCE_A_TILE __attribute__((noinline))

// Writes one value per neuron of a tile to an array of all neurons; null: not wanted.
template <class S>
SNNFAST_ONCE_A_TILE void keep(void* to, const Tile& tile, const S* from) {
    if (to) std::memcpy(static_cast<S*>(to) + tile.flat, from, tile.count * sizeof(S));
}

// The rows of one tensor in a tile: at(t) is the tile's first neuron at step t.
template <class T>
struct Rows {
    T* first = nullptr;
    i64 step = 0;

    T* at(i64 t) const { return first ? first + t * step : nullptr; }
    explicit operator bool() const { return first != nullptr; }
};

// The rows of a tensor, where it lies; or, for a staged tile, of a copy in columns of `width` elements.
template <class T>
class TileRows {
    using Element = std::remove_const_t<T>;

public:
    TileRows(T* data, const Strides& strides, i64 steps, i64 width)
        : data_(data), strides_(strides), steps_(strides.step == 0 ? 1 : steps), width_(width) {}

    SNNFAST_ONCE_A_TILE Rows<T> enter(const Tile& tile) {
        if (!data_) return {};
        const Rows<T> rows{data_ + tile.outer * strides_.outer + tile.first, strides_.step};
        if (!tile.staged) return rows;
        column_.assign(steps_ * width_, Element{});
        if constexpr (std::is_const_v<T>) copy(column_.data(), width_, rows.first, rows.step, tile.count);
        return {column_.data(), strides_.step == 0 ? 0 : width_};
    }

    // Takes a staged tile's results back to where they belong.
    SNNFAST_ONCE_A_TILE void leave(const Tile& tile) {
        if (data_ && tile.staged)
            copy(data_ + tile.outer * strides_.outer + tile.first, strides_.step, column_.data(), width_, tile.count);
    }

private:
    void copy(Element* to, i64 to_step, const Element* from, i64 from_step, i64 count) const {
        for (i64 t = 0; t < steps_; ++t) std::memcpy(to + t * to_step, from + t * from_step, count * sizeof(Element));
    }

    T* data_;
    Strides strides_;
    i64 steps_;
    i64 width_;
    std::vector<Element> column_;
};

// Values per channel as one value per neuron of a tile. A null array is a number.
template <class S, int Arrays>
class NeuronValues {
public:
    NeuronValues(const Layout& layout, const void* const (&arrays)[Arrays], const double (&numbers)[Arrays])
        : layout_(layout) {
        for (int k = 0; k < Arrays; ++k) {
            array_[k] = static_cast<const S*>(arrays[k]);
            number_[k] = S(numbers[k]);
        }
    }

    SNNFAST_ONCE_A_TILE void enter(const Tile& tile) {
        // With channels that change fast (channels-last), every tile has the values of the one before.
        const i64 phase = tile.flat % (layout_.channels * layout_.channel_stride);
        if (phase == phase_ && tile.count <= filled_) return;
        phase_ = phase;
        filled_ = tile.count;
        i64 channel = phase / layout_.channel_stride;
        i64 until_next = layout_.channel_stride - phase % layout_.channel_stride;
        for (i64 i = 0; i < tile.count;) {
            const i64 run = until_next < tile.count - i ? until_next : tile.count - i;
            for (int k = 0; k < Arrays; ++k) {
                const S value = array_[k] ? array_[k][channel] : number_[k];
                for (i64 j = i; j < i + run; ++j) value_[k][j] = value;
            }
            i += run;
            until_next = layout_.channel_stride;
            if (++channel == layout_.channels) channel = 0;
        }
    }

    SNNFAST_HD Vector<S> at(int k, i64 i) const { return load(&value_[k][i]); }

private:
    const Layout& layout_;
    const S* array_[Arrays];
    S number_[Arrays];
    i64 phase_ = -1;
    i64 filled_ = 0;
    alignas(64) S value_[Arrays][tile_length] = {};
};

// The coefficients of a tile's neurons: numbers, or where they are given per channel one value per neuron.
template <class S, bool PerChannel>
class TileCoefficients {
    using V = Vector<S>;

public:
    TileCoefficients(const Dynamics& d, const ChannelCoefficients&, const Layout&)
        : leak_(S(d.leak)), gain_(S(d.gain)), drive_(S(d.drive)), threshold_(S(d.threshold)) {}
    void enter(const Tile&) {}
    SNNFAST_HD TileCoefficients local() const { return *this; }
    SNNFAST_HD Coefficients<V> at(i64) const { return {V{} + leak_, V{} + gain_, V{} + drive_, V{} + threshold_}; }

private:
    const S leak_, gain_, drive_, threshold_;
};

template <class S>
class TileCoefficients<S, true> {
public:
    TileCoefficients(const Dynamics& d, const ChannelCoefficients& given, const Layout& layout)
        : values_(layout, {given.leak, given.gain, given.drive, given.threshold},
                  {d.leak, d.gain, d.drive, d.threshold}) {}
    void enter(const Tile& tile) { values_.enter(tile); }
    SNNFAST_HD const TileCoefficients& local() const { return *this; }
    SNNFAST_HD Coefficients<Vector<S>> at(i64 i) const {
        return {values_.at(0, i), values_.at(1, i), values_.at(2, i), values_.at(3, i)};
    }

private:
    NeuronValues<S, 4> values_;
};

// The normalization of a tile's neurons.
template <class S, Currents How>
class TileNormalizers {
public:
    TileNormalizers(const Normalization& n, const Layout& layout)
        : given_(n.mean), batch_(n.through_mean),
          values_(layout, {n.mean, n.scale, n.shift, n.through_mean, n.through_variance}, {0.0, 1.0, 0.0, 0.0, 0.0}) {}
    void enter(const Tile& tile) {
        if (normalized()) values_.enter(tile);
    }
    SNNFAST_HD bool normalized() const { return How == Currents::normalized || given_; }
    SNNFAST_HD bool batch() const { return batch_; }
    SNNFAST_HD Normalizer<Vector<S>> at(i64 i) const {
        return {values_.at(0, i), values_.at(1, i), values_.at(2, i), values_.at(3, i), values_.at(4, i)};
    }

private:
    const bool given_;
    const bool batch_;
    NeuronValues<S, 5> values_;
};

template <class S>
class TileNormalizers<S, Currents::plain> {
public:
    TileNormalizers(const Normalization&, const Layout&) {}
    void enter(const Tile&) {}
    SNNFAST_HD static constexpr bool normalized() { return false; }
    SNNFAST_HD static constexpr bool batch() { return false; }
    SNNFAST_HD static Normalizer<Vector<S>> at(i64) {
        const Vector<S> none{};
        return {none, none, none, none, none};
    }
};

template <class Storage>
i64 output_bytes(const Layout& layout) {
    return layout.neurons() * layout.steps * i64(sizeof(Storage));
}

// How an output of a call is written. Streaming stores want whole, aligned vectors in every row.
template <class Storage>
Writing writing(const void* data, const Layout& layout, const Strides& strides) {
    constexpr i64 bytes = sizeof(typename LaneConversion<Storage>::Stored);
    const auto aligned = [](i64 elements) { return elements * i64(sizeof(Storage)) % bytes == 0; };
    const i64 size = output_bytes<Storage>(layout), streamed = cpu::streaming_threshold();
    if (size < streamed / 2) return Writing::cached;  // most of it is found there
    const bool whole = reinterpret_cast<unsigned long long>(data) % bytes == 0 && aligned(strides.step) &&
                       (layout.outer == 1 || aligned(strides.outer));
    return size >= streamed && whole ? Writing::streamed : Writing::fetched;
}

template <class S>
SNNFAST_ONCE_A_TILE void load_state(S* v, const S* initial, S otherwise, const Tile& tile) {
    if (initial)
        std::memcpy(v, initial + tile.flat, tile.count * sizeof(S));
    else
        std::fill_n(v, tile.count, otherwise);
    std::fill_n(v + tile.count, tile.span - tile.count, S(0));
}

// The rows of a pass's currents, by value: no store of the pass can be thought to change them.
template <class Storage, Currents How>
struct CurrentRows {
    using S = State<Storage>;
    using V = Vector<S>;
    const TileNormalizers<S, How>& normalizers;
    const Storage* const x;
    const Storage* const residual;
    const i64 x_step, residual_step, ahead;
    const bool normalized;

    SNNFAST_HD V raw(int t, i64 i) const { return load(x + t * x_step + i); }
    SNNFAST_HD Normalizer<V> normalizer(i64 i) const { return normalizers.at(i); }

    // As the neurons integrate them.
    template <int Steps>
    SNNFAST_HD void read(V (&to)[Steps], i64 i) const {
        for (int t = 0; t < Steps; ++t) {
            prefetch(x + t * x_step, i, ahead);
            to[t] = raw(t, i);
        }
        if (normalized) {
            const Normalizer<V> n = normalizer(i);
            for (int t = 0; t < Steps; ++t) to[t] = normalize(n, to[t]);
            if (residual) {
                for (int t = 0; t < Steps; ++t) {
                    prefetch(residual + t * residual_step, i, ahead);
                    to[t] = to[t] + load(residual + t * residual_step + i);
                }
            }
        }
    }
};

// The currents of a tile.
template <class Storage, Currents How>
class TileCurrents {
    using S = State<Storage>;
    using V = Vector<S>;

public:
    template <class Call>
    TileCurrents(const Call& call, Writing how)
        : normalizers(call.normalization, call.layout),
          ahead_(how == Writing::streamed ? prefetch_bytes_of_memory : prefetch_bytes),
          current_(static_cast<const Storage*>(call.current), call.layout.current, call.layout.steps, lanes<Storage>),
          residual_(static_cast<const Storage*>(call.normalization.residual), call.layout.residual, call.layout.steps,
                    lanes<Storage>) {}

    void enter(const Tile& tile) {
        normalizers.enter(tile);
        x = current_.enter(tile);
        residual = residual_.enter(tile);
    }

    // From a step on.
    SNNFAST_HD CurrentRows<Storage, How> from(i64 step) const {
        return {normalizers, x.at(step), residual.at(step), x.step, residual.step, ahead_, normalizers.normalized()};
    }

    TileNormalizers<S, How> normalizers;
    Rows<const Storage> x;
    Rows<const Storage> residual;

private:
    const i64 ahead_;
    TileRows<const Storage> current_;
    TileRows<const Storage> residual_;
};

// Splits [first, last) into passes of Most steps, and for the rest of two and one, and calls pass(their number as a
// type, first step). A number known to the compiler lets it load all of a pass's steps before it computes: a load
// behind a store of another tensor at the same offset into a page would wait for it.
template <int Most, class Pass>
SNNFAST_HD void for_each_pass(i64 first, i64 last, Pass pass) {
    for (; first + Most <= last; first += Most) pass(std::integral_constant<int, Most>{}, first);
    if constexpr (Most > 2) {
        if (first + 2 <= last) {
            pass(std::integral_constant<int, 2>{}, first);
            first += 2;
        }
    }
    if constexpr (Most > 1) {
        if (first < last) pass(std::integral_constant<int, 1>{}, first);
    }
}

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

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
