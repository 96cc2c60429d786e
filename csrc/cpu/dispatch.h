// The CPU kernels of each instruction set: forward.cpp, backward.cpp and statistics.cpp, built several times over.
#pragma once

#include "calls.h"

namespace snnfast {

namespace baseline {
void forward(const ForwardCall& call, int threads);
void backward(const BackwardCall& call, int threads);
void moments(const MomentsCall& call, int threads);
void gradient_through(const GradientThroughCall& call, int threads);
void channel_sum(const ChannelSumCall& call, int threads);
}  // namespace baseline

namespace avx2 {
void forward(const ForwardCall& call, int threads);
void backward(const BackwardCall& call, int threads);
void moments(const MomentsCall& call, int threads);
void gradient_through(const GradientThroughCall& call, int threads);
void channel_sum(const ChannelSumCall& call, int threads);
}  // namespace avx2

namespace avx512 {
void forward(const ForwardCall& call, int threads);
void backward(const BackwardCall& call, int threads);
void moments(const MomentsCall& call, int threads);
void gradient_through(const GradientThroughCall& call, int threads);
void channel_sum(const ChannelSumCall& call, int threads);
}  // namespace avx512

}  // namespace snnfast
