// The statistics pass of batch normalization on the CPU.
#pragma once

#include "cpu/tiles.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// What every neuron contributes to its channel's moments (normalization.h).
template <class Storage>
class MomentsTiles {
    using S = State<Storage>;
    using V = Vector<S>;

public:
    explicit MomentsTiles(const MomentsCall& call)
        : call_(call), steps_(call.layout.held ? 1 : call.layout.steps), pivots_(make_pivots(call)),
          pivot_values_(call.layout, {pivots_.data()}, {0.0}),
          ahead_(output_bytes<Storage>(call.layout) >= cpu::streaming_threshold() ? prefetch_bytes_of_memory
                                                                                  : prefetch_bytes),
          current_(static_cast<const Storage*>(call.current), call.layout.current, steps_, lanes<Storage>) {}

    void run(const Tile& tile) {
        pivot_values_.enter(tile);
        x_ = current_.enter(tile);
        std::memset(sum_, 0, tile.span * sizeof(S));
        std::memset(squares_, 0, tile.span * sizeof(S));
        for_each_pass<pass_steps<false>>(i64(1), steps_, [&](auto steps, i64 from) { pass<steps()>(tile, from); });
        for (i64 i = 0; i < tile.span; i += lanes<Storage>) {
            const Contribution<V> mine =
                contribution(load(x_.first + i), pivot_values_.at(0, i), load(sum_ + i), load(squares_ + i), S(steps_));
            store(sum_ + i, mine.mean);
            store(squares_ + i, mine.squares);
        }
        keep(call_.workspace, tile, sum_);
        keep(static_cast<S*>(call_.workspace) + call_.layout.neurons(), tile, squares_);
    }

private:
    static std::vector<S> make_pivots(const MomentsCall& call) {
        std::vector<S> pivots(call.layout.channels);
        for (i64 c = 0; c < call.layout.channels; ++c)
            pivots[c] = widen(static_cast<const Storage*>(call.current)[pivot_offset(call.layout, c)]);
        return pivots;
    }

    template <int Steps>
    void pass(const Tile& tile, i64 from) {
        const Storage* const first = x_.first;
        const Storage* const x = x_.at(from);
        const i64 x_step = x_.step, ahead = ahead_;
        for (i64 i = 0; i < tile.span; i += lanes<Storage>) {
            const V pivot = load(first + i);
            V sum = load(sum_ + i), squares = load(squares_ + i);
            for (int t = 0; t < Steps; ++t) {
                prefetch(x + t * x_step, i, ahead);
                const V d = load(x + t * x_step + i) - pivot;
                sum = sum + d;
                squares = squares + d * d;
            }
            store(sum_ + i, sum);
            store(squares_ + i, squares);
        }
    }

    const MomentsCall& call_;
    const i64 steps_;
    const std::vector<S> pivots_;
    NeuronValues<S, 1> pivot_values_;
    const i64 ahead_;
    TileRows<const Storage> current_;
    Rows<const Storage> x_;
    alignas(64) S sum_[tile_length];
    alignas(64) S squares_[tile_length];
};

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
