// Which kernel a call gets: the rule, the list of the kernels that are built, which is all that the rule can answer, and
// their names. Both backends launch from here; what differs between them, and between dtypes, is a Backend.
//
// A kernel is compiled for what costs time in its inner loop. Each kind more is build time, so that one kernel that can do
// everything serves the calls that are few.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "math/neuron.h"
#include "math/normalization.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

enum class Direction : int { forward, backward };

// Of the dynamics (math/neuron.h): decided at run time, or one of the paper's two.
enum class Policy : int { general, hard_detached, soft_attached };

struct Variant {
    int width = 1;  // neurons of a thread; 1 on the CPU, whose vectors have the width of the instruction set
    int block = 0;  // steps that a backward pass rebuilds at once
    Policy dynamics = Policy::general;
    Shape surrogate = Shape::fast_sigmoid;  // of a backward pass
    Currents currents = Currents::any;
    Channels channels = Channels::shared;  // of normalized currents
    Pass pass = Pass::any;                 // of a backward pass
    bool extras = true;                    // whether what few calls ask for is compiled in
};

constexpr bool operator==(const Variant& a, const Variant& b) {
    return a.width == b.width && a.block == b.block && a.dynamics == b.dynamics && a.surrogate == b.surrogate &&
           a.currents == b.currents && a.channels == b.channels && a.pass == b.pass && a.extras == b.extras;
}

// What a backend has for a dtype in one direction.
struct Backend {
    int width = 1;
    int block = 0;
    int short_width = 0;
    int short_block = 0;       // for the paper's dynamics over as few steps; 0: none
    int middle_block = 0;      // likewise, on normalized currents
    bool extras_apart = true;  // extras have a kernel of their own
    bool wide = true;          // there are kernels of its width
    bool passes_apart =
        false;  // the passes, and channels that neighbours share, have kernels, for the paper's dynamics
};

// What the rule asks of a call.
struct Question {
    bool wide = true;    // memory allows the backend's width
    bool brief = false;  // no more steps than the short block, and memory allows its width (of own channels: the width)
    bool middling = false;  // no more than the middle block
    bool extras = false;
    bool normalized = false;
    Policy dynamics = Policy::general;
    Shape surrogate = Shape::fast_sigmoid;
    Channels channels = Channels::own;
    Pass pass = Pass::any;
};

inline Policy policy_of(const Dynamics& d) {
    return is_hard_detached(d) ? Policy::hard_detached : is_soft_attached(d) ? Policy::soft_attached : Policy::general;
}

// What a kernel that can do everything is.
constexpr Variant narrow_variant(int block, Shape surrogate, bool extras) {
    return {1, block, Policy::general, surrogate, Currents::any, Channels::shared, Pass::any, extras};
}

// Neurons without a normalization have no use for their channels but a table's: one kernel for both.
constexpr Channels channels_of(const Backend& backend, const Question& asked, Policy dynamics) {
    if (!backend.passes_apart || !asked.normalized) return Channels::shared;
    return dynamics == Policy::general ? Channels::own : asked.channels;
}

constexpr Variant forward_variant(const Backend& backend, const Question& asked) {
    if (!asked.wide || (asked.extras && backend.extras_apart))
        return narrow_variant(0, Shape::fast_sigmoid, backend.extras_apart);
    Variant v;
    v.width = backend.width;
    v.dynamics = asked.extras ? Policy::general : asked.dynamics;
    v.currents = asked.normalized ? Currents::normalized : Currents::plain;
    v.channels = channels_of(backend, asked, v.dynamics);
    v.extras = false;
    return v;
}

// Only kernels for the paper's surrogate know the dynamics, or are for normalized currents alone.
constexpr Variant backward_variant(const Backend& backend, const Question& asked) {
    const bool fast_sigmoid = asked.surrogate == Shape::fast_sigmoid;
    if (!(asked.wide && backend.wide) || asked.extras || (asked.normalized && !fast_sigmoid))
        return narrow_variant(backend.block, asked.surrogate, true);
    Variant v;
    const bool known = fast_sigmoid && !(backend.passes_apart && asked.pass == Pass::any);
    v.dynamics = known ? asked.dynamics : Policy::general;
    const bool paper = v.dynamics != Policy::general;
    const bool brief = backend.short_block && asked.brief && paper;
    const bool middling = backend.middle_block && asked.middling && paper && asked.normalized;
    v.block = brief ? backend.short_block : middling ? backend.middle_block : backend.block;
    v.surrogate = asked.surrogate;
    v.currents = asked.normalized ? Currents::normalized : Currents::plain;
    v.channels = channels_of(backend, asked, v.dynamics);
    v.width = brief && v.channels == Channels::shared ? backend.short_width : backend.width;
    // Without a normalization there are no sums.
    v.pass = !(backend.passes_apart && paper) ? Pass::any : asked.normalized ? asked.pass : Pass::gradients;
    v.extras = false;
    return v;
}

constexpr Variant variant(Direction direction, const Backend& backend, const Question& asked) {
    return direction == Direction::forward ? forward_variant(backend, asked) : backward_variant(backend, asked);
}

struct Variants {
    Variant of[64];
    int count = 0;

    constexpr bool has(const Variant& wanted) const {
        for (int i = 0; i < count; ++i)
            if (of[i] == wanted) return true;
        return false;
    }
};

// All that the rule can answer: these kernels are built, and no others.
constexpr Variants variants(Direction direction, const Backend& backend) {
    Variants found;
    for (int flags = 0; flags < 64; ++flags)
        for (int pass = 0; pass < 3; ++pass)
            for (int dynamics = 0; dynamics < 3; ++dynamics)
                for (int shape = 0; shape < shapes; ++shape) {
                    const Question asked{
                        (flags & 1) != 0,          (flags & 2) != 0,
                        (flags & 4) != 0,          (flags & 8) != 0,
                        (flags & 32) != 0,         static_cast<Policy>(dynamics),
                        static_cast<Shape>(shape), (flags & 16) != 0 ? Channels::shared : Channels::own,
                        static_cast<Pass>(pass)};
                    const Variant answer = variant(direction, backend, asked);
                    if (!found.has(answer)) found.of[found.count++] = answer;
                }
    return found;
}

// The types that a variant's names stand for.
template <Policy>
struct DynamicsPolicy;
template <>
struct DynamicsPolicy<Policy::general> {
    template <class S>
    using of = General<S>;
};
template <>
struct DynamicsPolicy<Policy::hard_detached> {
    template <class S>
    using of = HardDetached<S>;
};
template <>
struct DynamicsPolicy<Policy::soft_attached> {
    template <class S>
    using of = SoftAttached<S>;
};

template <class List, int Index>
struct Known {
    static constexpr Variant value = List::value.of[Index];
};

// Calls `use` with a type whose `value` is the variant, as a constant. `List::value` is a backend's list of variants.
template <class List, class Use, int... Index>
void with_variant(const Variant& wanted, Use use, std::integer_sequence<int, Index...>) {
    const auto is = [&](auto index) {
        using One = Known<List, decltype(index)::value>;
        if (!(One::value == wanted)) return false;
        use(One{});
        return true;
    };
    const bool found = (is(std::integral_constant<int, Index>{}) || ...);
    if (!found) throw std::logic_error("snnfast: no kernel is built for a variant that the rule of variants.h gave");
}
template <class List, class Use>
void with_variant(const Variant& wanted, Use use) {
    with_variant<List>(wanted, use, std::make_integer_sequence<int, List::value.count>{});
}

// The C++ expression that names a variant's CUDA kernel, as a run-time compiler takes it.
inline std::string name(Direction direction, DType dtype, const Variant& v) {
    const std::string space = "snnfast::portable::";
    const char* const storages[] = {"float", "double", "float16", "bfloat16"};
    const char* const policies[] = {"General", "HardDetached", "SoftAttached"};
    const char* const surrogates[] = {"FastSigmoid", "Triangle", "Exponential", "Rectangle",
                                      "Arctangent",  "Sigmoid",  "Gaussian"};
    const char* const currents[] = {"plain", "normalized", "any"};
    const char* const channels[] = {"shared", "own"};
    const char* const passes[] = {"sums", "gradients", "any"};
    const bool ours = dtype == DType::float16 || dtype == DType::bfloat16;
    const std::string storage = (ours ? space : "") + storages[static_cast<int>(dtype)];
    const std::string state = dtype == DType::float64 ? "double" : "float";
    const std::string dynamics = space + policies[static_cast<int>(v.dynamics)] + "<" + state + ">";
    const std::string how = space + "Currents::" + currents[static_cast<int>(v.currents)] + ", " + space +
                            "Channels::" + channels[static_cast<int>(v.channels)];
    const std::string pass = space + "Pass::" + passes[static_cast<int>(v.pass)];
    if (direction == Direction::forward)
        return space + "forward_kernel<" + storage + ", " + std::to_string(v.width) + ", " + dynamics + ", " + how +
               ">";
    return space + "backward_kernel<" + storage + ", " + std::to_string(v.width) + ", " + std::to_string(v.block) +
           ", " + space + surrogates[static_cast<int>(v.surrogate)] + ", " + dynamics + ", " + how + ", " + pass +
           ", " + (v.extras ? "true" : "false") + ">";
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
