// The CPU kernels of each instruction set: cpu_kernels.cpp, built several times over.
#pragma once

#include "api.h"

namespace snnfast {

namespace baseline {
void forward_on_cpu(const ForwardCall& call, int threads);
void backward_on_cpu(const BackwardCall& call, int threads);
}  // namespace baseline

namespace avx2 {
void forward_on_cpu(const ForwardCall& call, int threads);
void backward_on_cpu(const BackwardCall& call, int threads);
}  // namespace avx2

namespace avx512 {
void forward_on_cpu(const ForwardCall& call, int threads);
void backward_on_cpu(const BackwardCall& call, int threads);
}  // namespace avx512

}  // namespace snnfast
