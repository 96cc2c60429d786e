// The CPU kernels of the forward pass, compiled once per instruction set (SNNFAST_TARGET names the namespace).
//
// Within a tile a pass takes a few steps at once: each step is a stream of memory of its own, and processors follow
// only so many. Outputs too large for the caches are written past them: nothing reads them before they would have been
// evicted.
#include "cpu/backend.h"
#include "cpu/dispatch.h"
#include "cpu/tiles.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {
namespace {

// What costs time in an inner loop is a policy: the dynamics where the compiler knows them, normalized currents, and
// Extras (coefficients per channel, delay, a late reset, recorded potentials and their gradients, gradients of threshold and tau).
template <class Storage, class D, Currents How, bool Extras>
class ForwardTiles {
    using S = State<Storage>;
    using V = Vector<S>;

public:
    explicit ForwardTiles(const ForwardCall& call)
        : call_(call), dynamics_(call.dynamics), coefficients_(call.dynamics, call.coefficients, call.layout),
          writing_(writing<Storage>(call.spikes, call.layout, call.layout.spikes)), currents_(call, writing_),
          spikes_(static_cast<Storage*>(call.spikes), call.layout.spikes, call.layout.steps, lanes<Storage>),
          potential_(static_cast<S*>(call.potential), call.layout.spikes, call.layout.steps, lanes<Storage>) {}

    ~ForwardTiles() {
        if (writing_ == Writing::streamed) end_of_streaming();
    }

    void run(const Tile& tile) {
        const Layout& layout = call_.layout;
        coefficients_.enter(tile);
        currents_.enter(tile);
        out_ = spikes_.enter(tile);
        recorded_ = potential_.enter(tile);
        load_state(v_, static_cast<const S*>(call_.initial), S(rest(dynamics_)), tile);
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
        const Writing how = tile.staged ? Writing::cached : writing_;
        // Local: no store can be thought to change them.
        const D dynamics = dynamics_;
        const auto x = currents_.from(from);
        const auto& coefficients = coefficients_.local();
        const i64 span = tile.span;
        for (i64 i = 0; i < span; i += lanes<Storage>) {
            const Coefficients<V> k = coefficients.at(i);
            V currents[Steps];
            x.read(currents, i);
            V v = load(v_ + i);
            for (int t = 0; t < Steps; ++t) {
                const V h = charge(dynamics, k, v, currents[t]);
                const auto fired = fires(dynamics, k, h);
                if (!Extras || t < stored) store_output(out + t * out_step, i, fired ? V{} + S(1) : V{}, how);
                if (Extras && potential) store(potential + t * potential_step + i, h);
                v = reset(dynamics, k, h, fired);
            }
            store(v_ + i, v);
        }
    }

    const ForwardCall& call_;
    const D dynamics_;
    TileCoefficients<S, Extras> coefficients_;
    const Writing writing_;
    TileCurrents<Storage, How> currents_;
    TileRows<Storage> spikes_;
    TileRows<S> potential_;
    Rows<Storage> out_;
    Rows<S> recorded_;
    alignas(64) S v_[tile_length] = {};
};

}  // namespace

void forward(const ForwardCall& call, int threads) {
    const bool extras = call.dynamics.delay || call.dynamics.late || call.potential;
    with_storage(call.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_variant_of<Direction::forward>(call, extras, Shape::fast_sigmoid, [&](auto known) {
            constexpr Variant v = decltype(known)::value;
            using D = typename DynamicsPolicy<v.dynamics>::template of<State<Storage>>;
            using Known = KnownLateness<D, v.extras>;
            run_tiles<Storage, ForwardTiles<Storage, Known, v.currents, v.extras>>(call, threads);
        });
    });
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
