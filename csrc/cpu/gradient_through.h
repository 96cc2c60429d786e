// From the gradient of the normalized currents to that of the currents, on the CPU: through the batch's statistics, which
// a deferred backward pass could not know yet.
#pragma once

#include "cpu/tiles.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

template <class Storage>
class GradientThroughTiles {
    using V = Vector<State<Storage>>;

public:
    explicit GradientThroughTiles(const GradientThroughCall& call)
        : steps_(call.layout.steps), normalizers_(call.normalization, call.layout),
          current_(static_cast<const Storage*>(call.current), call.layout.current, steps_, lanes<Storage>),
          given_(static_cast<const Storage*>(call.gradient), call.layout.grad_current, steps_, lanes<Storage>),
          made_(static_cast<Storage*>(call.gradient), call.layout.grad_current, steps_, lanes<Storage>) {}

    void run(const Tile& tile) {
        normalizers_.enter(tile);
        const Rows<const Storage> x = current_.enter(tile), given = given_.enter(tile);
        const Rows<Storage> made = made_.enter(tile);
        for_each_pass<2>(i64(0), steps_, [&](auto steps, i64 from) {
            pass<steps()>(x.at(from), given.at(from), made.at(from), x.step, made.step, tile.span);
        });
        made_.leave(tile);
    }

private:
    // `made` may be `given`.
    template <int Steps>
    void pass(const Storage* x, const Storage* given, Storage* made, i64 x_step, i64 step, i64 span) {
        for (i64 i = 0; i < span; i += lanes<Storage>) {
            const Normalizer<V> n = normalizers_.at(i);
            V grad[Steps], centered[Steps];
            for (int t = 0; t < Steps; ++t) {
                prefetch(x + t * x_step, i, prefetch_bytes);
                prefetch(given + t * step, i, prefetch_bytes);
                grad[t] = load(given + t * step + i);
                centered[t] = load(x + t * x_step + i) - n.mean;
            }
            for (int t = 0; t < Steps; ++t) store(made + t * step + i, gradient_through(n, grad[t], centered[t], true));
        }
    }

    const i64 steps_;
    TileNormalizers<State<Storage>, Currents::normalized> normalizers_;
    TileRows<const Storage> current_;
    TileRows<const Storage> given_;
    TileRows<Storage> made_;
};

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
