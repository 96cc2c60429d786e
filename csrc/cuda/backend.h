// Which of the kernels of variants.h the CUDA side has.
#pragma once

#include "cuda/tuning.h"
#include "math/storage.h"
#include "variants.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

template <class Storage>
constexpr Backend cuda_backend(Direction direction) {
    // The forward kernel that decides its dynamics at run time is fast enough for its extras.
    if (direction == Direction::forward) return {forward_width<Storage>, 0, 0, 0, 0, false, true, true};
    return {backward_width<Storage>,
            backward_block,
            short_backward_width<Storage>,
            steps_ahead,
            middle_block,
            true,
            wide_backward<Storage>,
            true};
}

template <class Storage, Direction direction>
struct CudaVariants {
    static constexpr Variants value = variants(direction, cuda_backend<Storage>(direction));
};

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
