// The dtypes a tensor may have and the dtype its neuron computes in: float32, or float64 for float64.
//
// The two 16-bit types are our own, so that NVRTC needs no include path of the CUDA toolkit and the CPU no library.
// Their conversions are written over "an unsigned 32-bit number or a vector of them", once for scalars and SIMD alike.
#pragma once

#include "calls.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

template <class Storage>
struct StateOf {
    using type = float;
};
template <>
struct StateOf<double> {
    using type = double;
};
template <class Storage>
using State = typename StateOf<Storage>::type;

// F is float (or a vector of floats), U the unsigned type of the same lanes.
template <class F, class U>
SNNFAST_HD F widen_float16(U half) {
    const U magnitude = (half & 0x7fffu) << 13;
    const U normal = magnitude + 0x38000000u;  // the exponent moves by 112
    // m * 2^-24 as (2^-14 + m * 2^-24) - 2^-14: no operand is subnormal in float32, which a thread may read as 0.
    const U subnormal = bits_as<U>(bits_as<F>(magnitude + 0x38800000u) - 6.103515625e-05f);
    const U finite = magnitude < 0x00800000u ? subnormal : normal;
    const U special = magnitude | 0x7f800000u;  // infinity and NaN keep their payload
    const U unsigned_bits = magnitude >= 0x0f800000u ? special : finite;
    return bits_as<F>(unsigned_bits | ((half & 0x8000u) << 16));
}

template <class F, class U>
SNNFAST_HD U narrow_float16(F value) {  // to nearest, ties to even, as torch does
    const U bits = bits_as<U>(value);
    const U magnitude = bits & 0x7fffffffu;
    const U special = magnitude > 0x7f800000u ? (magnitude | 0x7e00u) & 0x7e00u : (magnitude & 0u) | 0x7c00u;
    const U subnormal = bits_as<U>(bits_as<F>(magnitude) + 0.5f) - 0x3f000000u;  // the adder rounds
    const U normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
    const U finite = magnitude < 0x38800000u ? subnormal : normal;
    return (magnitude >= 0x47800000u ? special : finite) | ((bits >> 16) & 0x8000u);
}

template <class F, class U>
SNNFAST_HD F widen_bfloat16(U half) {
    return bits_as<F>(half << 16);
}

template <class F, class U>
SNNFAST_HD U narrow_bfloat16(F value) {
    const U bits = bits_as<U>(value);
    const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const U quiet_nan = (bits >> 16) | 0x0040u;
    return (bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
}

SNNFAST_HD float widen(float stored) { return stored; }
SNNFAST_HD double widen(double stored) { return stored; }
SNNFAST_HD float widen(bfloat16 stored) { return widen_bfloat16<float, unsigned>(stored.bits); }
SNNFAST_HD float widen(float16 stored) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(stored.bits));
    return value;
#else
    return widen_float16<float, unsigned>(stored.bits);
#endif
}

template <class Storage>
struct Narrow;
template <>
struct Narrow<float> {
    SNNFAST_HD static float from(float value) { return value; }
};
template <>
struct Narrow<double> {
    SNNFAST_HD static double from(double value) { return value; }
};
template <>
struct Narrow<float16> {
    SNNFAST_HD static float16 from(float value) {
#if defined(__CUDA_ARCH__)
        float16 stored;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored.bits) : "f"(value));
        return stored;
#else
        return {static_cast<unsigned short>(narrow_float16<float, unsigned>(value))};
#endif
    }
};
template <>
struct Narrow<bfloat16> {
    SNNFAST_HD static bfloat16 from(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        bfloat16 stored;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(stored.bits) : "f"(value));
        return stored;
#else
        return {static_cast<unsigned short>(narrow_bfloat16<float, unsigned>(value))};
#endif
    }
};

// Two 16-bit elements of one word.
template <class Storage>
SNNFAST_HD float widen_low(unsigned pair) {
    return widen(Storage{static_cast<unsigned short>(pair)});
}
template <class Storage>
SNNFAST_HD float widen_high(unsigned pair) {
    return widen(Storage{static_cast<unsigned short>(pair >> 16)});
}
template <>
SNNFAST_HD float widen_high<bfloat16>(unsigned pair) {
    return bits_as<float>(pair & 0xffff0000u);
}

template <class Storage>
SNNFAST_HD unsigned narrow_pair(float low, float high) {
    return Narrow<Storage>::from(low).bits | static_cast<unsigned>(Narrow<Storage>::from(high).bits) << 16;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
SNNFAST_HD unsigned narrow_pair<bfloat16>(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
template <>
SNNFAST_HD unsigned narrow_pair<float16>(float low, float high) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#endif

// The dtype's 1.0.
template <class Storage>
constexpr unsigned long long one_bits = 0x3ff0000000000000ull;
template <>
inline constexpr unsigned long long one_bits<float> = 0x3f800000u;
template <>
inline constexpr unsigned long long one_bits<float16> = 0x3c00u;
template <>
inline constexpr unsigned long long one_bits<bfloat16> = 0x3f80u;

// Calls `use` with a value of the type that stands for a dtype known at run time; `with_state`: of its state's.
template <class Use>
inline void with_storage(DType dtype, Use use) {
    switch (dtype) {
        case DType::float32: return use(float{});
        case DType::float64: return use(double{});
        case DType::float16: return use(float16{});
        case DType::bfloat16: return use(bfloat16{});
    }
}

template <class Use>
inline void with_state(DType dtype, Use use) {
    if (dtype == DType::float64)
        use(double{});
    else
        use(float{});
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
