// One neuron, one step: the only place that says what a step is (MATH.md sections 1 and 3).
//
// V is a number or a SIMD vector of numbers. The CPU kernels, the CUDA kernels and the host run of the CUDA kernels
// compile these same lines. Every operation of the recursion is rounded on its own, in this order; the build forbids
// contraction to fused multiply-adds, so a spike rebuilt in the backward pass is bit for bit the one emitted.
#pragma once

#include <type_traits>

#include "math/storage.h"
#include "math/surrogate.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// What differs from neuron to neuron. `drive` is rho of MATH.md.
template <class V>
struct Coefficients {
    V leak;
    V gain;
    V drive;
    V threshold;
};

// Dynamics that are the same for every neuron of a call, as policies. `General` decides at run time. The paper's two
// are known to the compiler: a GPU in 16-bit types is short of instructions, not of bandwidth, without them.
template <class S>
struct General {
    S reset_value;
    bool leaky;
    bool soft;
    bool attached;
    bool fire_on_equal;
    bool input_decays;
    bool late;

    SNNFAST_HD explicit General(const Dynamics& d)
        : reset_value(S(d.reset_value)), leaky(d.leaky), soft(d.soft), attached(d.attached),
          fire_on_equal(d.fire_on_equal), input_decays(d.input_decays), late(d.late) {}
};

template <class S>
struct HardDetached {
    S reset_value;
    static constexpr bool leaky = false;
    static constexpr bool soft = false;
    static constexpr bool attached = false;
    static constexpr bool fire_on_equal = false;
    static constexpr bool input_decays = false;
    static constexpr bool late = false;

    SNNFAST_HD explicit HardDetached(const Dynamics& d) : reset_value(S(d.reset_value)) {}
};

template <class S>
struct SoftAttached {
    static constexpr S reset_value = S(0);
    static constexpr bool leaky = false;
    static constexpr bool soft = true;
    static constexpr bool attached = true;
    static constexpr bool fire_on_equal = false;
    static constexpr bool input_decays = false;
    static constexpr bool late = false;

    SNNFAST_HD explicit SoftAttached(const Dynamics&) {}
};

// Dynamics whose reset the compiler knows not to be late.
template <class D>
struct NeverLate : D {
    static constexpr bool late = false;

    SNNFAST_HD explicit NeverLate(const Dynamics& d) : D(d) {}
};

template <class D>
constexpr bool is_general = false;
template <class S>
inline constexpr bool is_general<General<S>> = true;

// A late reset is for the kernels with extras: the others do not pay for it at every step.
template <class D, bool Extras>
using KnownLateness = std::conditional_t<is_general<D> && !Extras, NeverLate<D>, D>;

inline bool is_hard_detached(const Dynamics& d) { return !d.leaky && !d.fire_on_equal && !d.soft && !d.attached; }
inline bool is_soft_attached(const Dynamics& d) { return !d.leaky && !d.fire_on_equal && d.soft && d.attached; }

// The rest value: where the potential starts when no initial potential is given.
template <class D>
SNNFAST_HD auto rest(const D& dynamics) {
    return dynamics.soft ? decltype(dynamics.reset_value + 0)(0) : dynamics.reset_value + 0;
}

template <class D, class V>
SNNFAST_HD auto fires(const D& dynamics, const Coefficients<V>& k, V h) {
    return dynamics.fire_on_equal ? h >= k.threshold : h > k.threshold;
}

// A late reset comes with the next charge, after the leak: until then the potential is the one that crossed.
template <class D, class V>
SNNFAST_HD V charge(const D& dynamics, const Coefficients<V>& k, V v, V x) {
    const V charged = dynamics.leaky ? V(V(k.leak * v + k.gain * x) + k.drive) : V(v + x);
    if (!dynamics.late) return charged;
    return fires(dynamics, k, v) ? V(charged - k.threshold) : charged;
}

// Selects, never multiplies: an infinite potential must not make a NaN.
template <class D, class V, class Mask>
SNNFAST_HD V reset(const D& dynamics, const Coefficients<V>& k, V h, Mask fired) {
    if (dynamics.late) return h;
    const V after_spike = dynamics.soft ? V(h - k.threshold) : V(V{} + dynamics.reset_value);
    return fired ? after_spike : h;
}

// What one step of the backward pass yields (MATH.md section 3).
template <class V>
struct StepGradient {
    V potential;  // delta_t = dL/dh_t; dL/dx_t = gain * delta_t, dL/dv_{t-1} = leak * delta_t
    V threshold;  // this step's part of dL/dthreshold, without that of a late reset
};

// Stands for the gradient of a potential that was not recorded.
struct NotRecorded {};

template <class V>
SNNFAST_HD V with_recorded(V gradient, V recorded) {
    return gradient + recorded;
}
template <class V>
SNNFAST_HD V with_recorded(V gradient, NotRecorded) {
    return gradient;
}

// grad_spike: dL/ds_t. grad_recorded: dL/dh_t from a recorded potential. grad_after: dL/dv_t, from the step after.
// A product with a factor 0 is 0 whatever the other factor, so that infinite values do not make NaN. (That of the soft
// reset needs no care: where the threshold is infinite, the slope is 0.)
template <class Surrogate, class D, class V, class Recorded>
SNNFAST_HD StepGradient<V> step_gradient(const D& dynamics, const Coefficients<V>& k, Scalar<V> gamma, Scalar<V> beta,
                                         V h, V grad_spike, Recorded grad_recorded, V grad_after) {
    const auto fired = fires(dynamics, k, h);
    const V slope = Surrogate::derivative(V(h - k.threshold), gamma, beta);
    V through_spike = grad_spike;
    if (dynamics.attached || !branches_are_cheap) {
        const V reset_by = dynamics.soft ? V(-k.threshold) : V(dynamics.reset_value - h);
        const V product = grad_after * reset_by;
        const V through_reset = dynamics.soft ? product : grad_after == V{} ? V{} : product;
        through_spike = dynamics.attached ? V(grad_spike + through_reset) : grad_spike;
    }
    const V at_threshold = slope == V{} ? V{} : V(through_spike * slope);
    const V passed_on = dynamics.soft ? grad_after : (fired ? V{} : grad_after);
    const V subtracted = dynamics.soft && !dynamics.late ? (fired ? grad_after : V{}) : V{};
    return {V(with_recorded(at_threshold, grad_recorded)) + passed_on, V(-at_threshold - subtracted)};
}

// The part of dL/dthreshold of a late reset that came with this step's charge.
template <class D, class V>
SNNFAST_HD V late_threshold_gradient(const D& dynamics, const Coefficients<V>& k, V delta, V v_before) {
    return fires(dynamics, k, v_before) ? V(-delta) : V{};
}

// This step's part of dL/dtau, without the factor 1 / tau^2; 0 where delta is, whatever the potential.
template <class D, class V>
SNNFAST_HD V tau_gradient(const D& dynamics, V delta, V v_before, V x) {
    const V pulled = v_before - rest(dynamics);
    const V part = delta * (dynamics.input_decays ? V(pulled - x) : pulled);
    return delta == V{} ? V{} : part;
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
