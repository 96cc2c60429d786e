// How the CPU kernels go through a tensor: in tiles of neighbouring neurons of one outer index, small enough for their
// potentials to stay in the caches, each tile in passes of a few steps.
//
// Kernels see whole vectors only. What is left at the end of a row, less than a vector, is copied into columns of a
// vector's width, run as a tile of its own, and copied back: one loop body serves all sizes.
#pragma once

#include <type_traits>
#include <vector>

#include "normalization.h"
#include "vec.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

constexpr i64 tile_length = 1024;
// Steps at once. Where extras are asked for, one: those kernels are many, and each body more is build time.
template <bool Extras>
constexpr int pass_steps = Extras ? 1 : 4;

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

// Values per channel as one value per neuron of a tile. A null table is a number.
template <class S, int Tables>
class NeuronValues {
public:
    NeuronValues(const Layout& layout, const void* const (&tables)[Tables], const double (&numbers)[Tables])
        : layout_(layout) {
        for (int k = 0; k < Tables; ++k) {
            table_[k] = static_cast<const S*>(tables[k]);
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
            for (int k = 0; k < Tables; ++k) {
                const S value = table_[k] ? table_[k][channel] : number_[k];
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
    const S* table_[Tables];
    S number_[Tables];
    i64 phase_ = -1;
    i64 filled_ = 0;
    alignas(64) S value_[Tables][tile_length] = {};
};

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
    TileCoefficients(const Dynamics& d, const Tables& tables, const Layout& layout)
        : values_(layout, {tables.leak, tables.gain, tables.drive, tables.threshold},
                  {d.leak, d.gain, d.drive, d.threshold}) {}
    void enter(const Tile& tile) { values_.enter(tile); }
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

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
