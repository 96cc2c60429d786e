// Which of the kernels of variants.h the CPU has.
#pragma once

#include "variants.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

template <Direction direction>
struct CpuVariants {
    static constexpr Variants value = variants(direction, Backend{});
};

// Calls `use` with the variant of a call, as a type's constant.
template <Direction direction, class Call, class Use>
void with_variant_of(const Call& call, bool extras, Shape surrogate, Use use) {
    const auto& given = call.coefficients;
    Question asked;
    asked.extras = extras || given.threshold || given.leak || given.gain || given.drive;
    asked.normalized = call.normalization.mean;
    asked.dynamics = policy_of(call.dynamics);
    asked.surrogate = surrogate;
    with_variant<CpuVariants<direction>>(variant(direction, Backend{}, asked), use);
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
