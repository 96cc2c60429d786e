// Which policies the CPU kernels of a call are made of.
#pragma once

#include <type_traits>

#include "math/neuron.h"
#include "math/normalization.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

inline bool any_given(const ChannelCoefficients& given) {
    return given.threshold || given.leak || given.gain || given.drive;
}

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

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
