// The CPU kernels of each instruction set: cpu_kernels.cpp, built several times over.
#pragma once

#include "api.h"

namespace snnfast {

namespace baseline {
void forward_on_cpu(const ForwardCall& call, int threads);
void backward_on_cpu(const BackwardCall& call, int threads);
void moments_on_cpu(const MomentsCall& call, int threads);
void channel_sum_on_cpu(const ChannelSumCall& call, int threads);
}  // namespace baseline

namespace avx2 {
void forward_on_cpu(const ForwardCall& call, int threads);
void backward_on_cpu(const BackwardCall& call, int threads);
void moments_on_cpu(const MomentsCall& call, int threads);
void channel_sum_on_cpu(const ChannelSumCall& call, int threads);
}  // namespace avx2

namespace avx512 {
void forward_on_cpu(const ForwardCall& call, int threads);
void backward_on_cpu(const BackwardCall& call, int threads);
void moments_on_cpu(const MomentsCall& call, int threads);
void channel_sum_on_cpu(const ChannelSumCall& call, int threads);
}  // namespace avx512

namespace cpu {
i64 streaming_threshold();  // bytes of an output from which it is written past the caches
}  // namespace cpu

}  // namespace snnfast
