// The CUDA side of calls.h in a build without CUDA. snnfast/backends refuses CUDA tensors before it comes here.
#include <stdexcept>

#include "calls.h"
#include "math/pack_bits.h"

namespace snnfast {
namespace cuda {
namespace {

[[noreturn]] void refuse() { throw std::runtime_error("snnfast was built without CUDA kernels"); }

}  // namespace

void forward(const ForwardCall&, int, void*) { refuse(); }
void backward(const BackwardCall&, int, void*) { refuse(); }
void channel_sum(const ChannelSumCall&, int, void*) { refuse(); }
i64 channel_sum_workspace(i64, i64, i64, i64) { refuse(); }
i64 sums_workspace(DType, const Layout&) { refuse(); }
void moments(const MomentsCall&, int, void*) { refuse(); }
void statistics(const StatisticsCall&, int, void*) { refuse(); }
void normalization(const NormalizationCall&, int, void*) { refuse(); }
void normalization_gradients(const NormalizationGradientsCall&, int, void*) { refuse(); }
void pack_bits(const PackBitsCall&, int, void*) { refuse(); }
void unpack_bits(const UnpackBitsCall&, int, void*) { refuse(); }
bool compiled() { return false; }
const char* toolkit() { return ""; }
const char* architectures() { return ""; }

}  // namespace cuda
}  // namespace snnfast
