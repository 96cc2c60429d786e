// The one place that knows which compiler reads the shared headers: nvcc, NVRTC, or a C++ compiler for the CPU
// (several times over, once per instruction set) and for running the CUDA kernels on the host.
//
// No standard header is included here or in storage.h, surrogate.h, neuron.h and calls.h, so that NVRTC can read them.
#pragma once

#if defined(__CUDACC__)
#define SNNFAST_HD __host__ __device__ __forceinline__
#else
#define SNNFAST_HD inline __attribute__((always_inline))
#endif

// Each instruction set compiles the shared templates under its own namespace. Without it the linker would be free to
// keep the AVX-512 copy of a function for everyone (the one-definition rule).
#ifndef SNNFAST_TARGET
#define SNNFAST_TARGET portable
#endif

namespace snnfast {

using i64 = long long;

inline namespace SNNFAST_TARGET {

// Moves the bits of a value into another type of the same size. Vector types have their own overloads (vec.h).
template <class To, class From>
SNNFAST_HD To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits_as moves bits between types of one size");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}

// A quotient that no spike depends on (surrogate derivatives only). On a GPU in float32 the approximate instruction is
// accurate to 2 units in the last place and saves the slow path of an IEEE division.
template <class A, class B>
SNNFAST_HD auto approximate_quotient(A a, B b) {
    return a / b;
}
#if defined(__CUDA_ARCH__)
template <>
SNNFAST_HD auto approximate_quotient<float, float>(float a, float b) {
    return __fdividef(a, b);
}
#endif

// Whether a branch on a value that all neurons share costs less than what it skips. On a GPU it makes the compiler keep
// more values at once than there are registers.
#if defined(__CUDA_ARCH__)
constexpr bool branches_are_cheap = false;
#else
constexpr bool branches_are_cheap = true;
#endif

SNNFAST_HD double square_root(double value) {
#if defined(__CUDA_ARCH__)
    return __dsqrt_rn(value);
#else
    return __builtin_sqrt(value);
#endif
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
