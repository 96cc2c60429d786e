// How the threads of a launch share the neurons: decided on the host, followed by every kernel.
//
// The neurons' flat order is rows of all channels, one below the other: [before, channels, channel_stride]. A tile is a
// part of a channel, or a few whole channels, that the threads of a block cover side by side, Width neurons each. Every
// thread walks down the rows at its place, so that what belongs to its channels is loaded once, and sums per channel need
// no memory but a block's. A block takes `ranks` rows at once and every `pieces`-th of these.
#pragma once

#include "cuda/tuning.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Quotients by one divisor, without a division where the numbers are below 2^31.
struct Divisor {
    i64 divisor = 1;
    unsigned multiplier = 1u << 31;
    int shift = 31;

    Divisor() = default;
    explicit Divisor(i64 divisor_) : divisor(divisor_) {
        int bits = 0;
        while (bits < 31 && (i64(1) << bits) < divisor) ++bits;
        shift = 31 + bits;
        multiplier = static_cast<unsigned>(((1ull << shift) + divisor - 1) / divisor);
    }

    SNNFAST_HD unsigned small(unsigned number) const {
        return static_cast<unsigned>(static_cast<unsigned long long>(number) * multiplier >> shift);
    }
    SNNFAST_HD i64 quotient(i64 number) const {
        if ((number | divisor) >> 31 == 0) return small(static_cast<unsigned>(number));
        return number / divisor;
    }
};

struct Walk {
    i64 rows = 1;
    i64 row_length = 1;    // neurons of a row
    i64 group_length = 1;  // neurons of the channels that tiles cut, or that one tile takes whole
    int channels = 1;      // whole channels of a tile
    int pieces = 1;
    int lanes = 1;  // threads side by side
    int ranks = 1;
    bool own = false;  // neighbouring neurons may be of different channels: each neuron has its own
    int after = 1;     // neighbours of one channel in a tile: threads, or neurons where each has its own
    Divisor inner;     // of the layout
    Divisor by_tiles;  // of a row
    Divisor by_cuts;   // tiles of a group
    Divisor by_lanes;
    Divisor by_after;
    Divisor by_members;  // the threads of a block, or their neurons, that one channel's sum is made of

    SNNFAST_HD i64 tiles() const { return by_tiles.divisor; }
    SNNFAST_HD i64 parts() const { return by_cuts.divisor * pieces; }  // of which a channel's sum is made
};

inline i64 longest_walk_over(i64 steps) {
    const i64 rows = longest_sum / steps;
    return rows < 1 ? 1 : rows > longest_walk ? longest_walk : rows;
}

// Whether Width neighbours can be walked together: a tile must hold them, and their channels, whole.
inline bool walkable(const Layout& layout, int width) {
    if (layout.channels == 1 || layout.channel_stride % width == 0) return true;
    return layout.channel_stride < threads_per_block && layout.channels * layout.channel_stride % width == 0;
}

inline Walk walk_of(const Layout& layout, int width) {
    const auto ceiling = [](i64 a, i64 b) { return (a + b - 1) / b; };
    Walk walk;
    const i64 neurons = layout.neurons();
    i64 stride = layout.channel_stride;
    if (layout.channels == 1) {  // rows of no meaning, for threads to walk down
        stride = neurons;
        while (neurons / stride < longest_walk_over(layout.steps) && stride % (2 * width) == 0 &&
               stride / width >= 2 * least_blocks * threads_per_block)
            stride /= 2;
    }
    walk.inner = Divisor(layout.inner);
    walk.row_length = layout.channels * stride;
    walk.rows = neurons / walk.row_length;
    walk.own = stride % width != 0;
    i64 cuts = 1;
    if (walk.own) {
        // As many channels as fill the threads, in numbers that end where a pack does.
        int least = 1;
        while (least * stride % width != 0) ++least;
        const i64 groups = threads_per_block * width / (least * stride);
        walk.channels = static_cast<int>(least * (groups < 1 ? 1 : groups));
        if (walk.channels > layout.channels) walk.channels = static_cast<int>(layout.channels);
        walk.lanes = static_cast<int>(walk.channels * stride / width);
        walk.after = static_cast<int>(stride);
    } else {
        const i64 packs = stride / width;
        cuts = ceiling(packs, threads_per_block);
        if (cuts == 1) {
            walk.channels = static_cast<int>(threads_per_block / packs);
            if (walk.channels > layout.channels) walk.channels = static_cast<int>(layout.channels);
        }
        walk.after = static_cast<int>(ceiling(packs, cuts));
        walk.lanes = walk.channels * walk.after;
    }
    walk.group_length = walk.channels * stride;
    walk.ranks = threads_per_block / walk.lanes;
    const i64 tiles = ceiling(layout.channels, walk.channels) * cuts;
    walk.by_tiles = Divisor(tiles);
    walk.by_cuts = Divisor(cuts);
    walk.by_lanes = Divisor(walk.lanes);
    walk.by_after = Divisor(walk.after);
    walk.by_members = Divisor(i64(walk.ranks) * walk.after);
    const i64 steps_down = ceiling(walk.rows, walk.ranks);
    const i64 blocks = tiles * steps_down;
    i64 length = blocks / least_blocks;
    const i64 longest = longest_walk_over(layout.steps);
    length = length < 1 ? 1 : length > longest ? longest : length;
    walk.pieces = static_cast<int>(ceiling(steps_down, length));
    return walk;
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
