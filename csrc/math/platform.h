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

// Arithmetic that no spike depends on (surrogate derivatives, gradients, moments), which a GPU may round once less.

// A quotient by 1 and more. In float32 a GPU's approximate reciprocal is accurate to an ulp, and for such divisors needs
// no care of subnormal numbers: what is below them becomes 0.
template <class A, class B>
SNNFAST_HD auto approximate_quotient(A a, B b) {
    return a / b;
}
template <class A, class B, class C>
SNNFAST_HD auto multiply_add(A a, B b, C c) {
    return a * b + c;
}
template <class A, class B, class C>
SNNFAST_HD auto subtract_product(C c, A a, B b) {
    return c - a * b;
}
#if defined(__CUDA_ARCH__)
template <>
SNNFAST_HD auto approximate_quotient<float, float>(float a, float b) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
    return a * reciprocal;
}
template <>
SNNFAST_HD auto multiply_add<float, float, float>(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}
template <>
SNNFAST_HD auto subtract_product<float, float, float>(float c, float a, float b) {
    return __fmaf_rn(-a, b, c);
}
template <>
SNNFAST_HD auto multiply_add<double, double, double>(double a, double b, double c) {
    return __fma_rn(a, b, c);
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
