// The host-run module holds the CUDA side alone, and says which kernels were launched.
#include <cuda_runtime.h>

#include <stdexcept>

#include "calls.h"
#include "cpu/threads.h"
#include "math/pack_bits.h"

namespace snnfast {
namespace cpu {
void forward(const ForwardCall&, int) { throw std::logic_error("host run: no CPU kernels here"); }
void backward(const BackwardCall&, int) { throw std::logic_error("host run: no CPU kernels here"); }
void channel_sum(const ChannelSumCall&, int) { throw std::logic_error("host run: no CPU kernels here"); }
i64 sums_workspace(DType, const Layout&) { throw std::logic_error("host run: no CPU kernels here"); }
void moments(const MomentsCall&, int) { throw std::logic_error("host run: no CPU kernels here"); }
void gradient_through(const GradientThroughCall&, int) { throw std::logic_error("host run: no CPU kernels here"); }
void statistics(const StatisticsCall&, int) { throw std::logic_error("host run: no CPU kernels here"); }
void normalization(const NormalizationCall&, int) { throw std::logic_error("host run: no CPU kernels here"); }
void normalization_gradients(const NormalizationGradientsCall&, int) {
    throw std::logic_error("host run: no CPU kernels here");
}
void pack_bits(const PackBitsCall&, int) { throw std::logic_error("host run: no CPU kernels here"); }
void unpack_bits(const UnpackBitsCall&, int) { throw std::logic_error("host run: no CPU kernels here"); }
const char* instruction_set() { return "none"; }
bool use_instruction_set(const char*) { return false; }
i64 streaming_threshold() { return 0; }
void use_streaming_threshold(i64) {}
}  // namespace cpu
bool use_openmp_of(const char*) { return false; }
}  // namespace snnfast

// The kernels that were launched since this was last asked: fills `addresses` as far as it has room; how many there are.
extern "C" __attribute__((visibility("default"))) int host_run_launched(const void** addresses, int room) {
    for (const void* kernel : host_run::launched)
        if (room-- > 0) *addresses++ = kernel;
    const int count = static_cast<int>(host_run::launched.size());
    host_run::launched.clear();
    return count;
}
