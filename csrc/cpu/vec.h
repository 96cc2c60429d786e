// SIMD vectors for the CPU kernels: the compiler's vector types with the register width of one instruction set.
//
// They take part in ordinary expressions (a ? b : c selects lane by lane), so the step mathematics in neuron.h is
// compiled from the same lines for a number and for a vector. Include this header before neuron.h's templates are used.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/tuning.h"
#include "math/neuron.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

#if defined(__AVX512F__)
constexpr int register_bytes = 64;
#elif defined(__AVX2__)
constexpr int register_bytes = 32;
#else
constexpr int register_bytes = 16;
#endif

typedef float FloatLanes __attribute__((vector_size(register_bytes)));
typedef double DoubleLanes __attribute__((vector_size(register_bytes)));
typedef unsigned UnsignedLanes __attribute__((vector_size(register_bytes)));
typedef unsigned long long LongLanes __attribute__((vector_size(register_bytes)));
typedef unsigned short HalfLanes __attribute__((vector_size(register_bytes / 2)));  // as many as FloatLanes has

template <>
struct LanesOf<FloatLanes> {
    using Scalar = float;
    using Bits = UnsignedLanes;
};
template <>
struct LanesOf<DoubleLanes> {
    using Scalar = double;
    using Bits = LongLanes;
};

template <class S>
struct VectorOf;
template <>
struct VectorOf<float> {
    using type = FloatLanes;
};
template <>
struct VectorOf<double> {
    using type = DoubleLanes;
};
template <class S>
using Vector = typename VectorOf<S>::type;

// How a vector of states is read from and written to an array of Storage: as many elements as the state has lanes.
template <class Storage>
struct LaneConversion {  // float and double are stored as they are
    using Stored = Vector<Storage>;
    SNNFAST_HD static Vector<Storage> widen(Stored stored) { return stored; }
    SNNFAST_HD static Stored narrow(Vector<Storage> value) { return value; }
};
template <>
struct LaneConversion<float16> {
    using Stored = HalfLanes;
    SNNFAST_HD static FloatLanes widen(Stored stored) {
#if defined(__AVX512F__)  // one instruction, which does not heed how a thread treats subnormal numbers either
        return (FloatLanes)_mm512_maskz_cvtph_ps(0xffff, (__m256i)stored);  // unmasked, gcc 12's header warns of itself
#elif defined(__F16C__)
        return (FloatLanes)_mm256_cvtph_ps((__m128i)stored);
#else
        return widen_float16<FloatLanes>(__builtin_convertvector(stored, UnsignedLanes));
#endif
    }
    SNNFAST_HD static Stored narrow(FloatLanes value) {
        return __builtin_convertvector((narrow_float16<FloatLanes, UnsignedLanes>(value)), HalfLanes);
    }
};
template <>
struct LaneConversion<bfloat16> {
    using Stored = HalfLanes;
    SNNFAST_HD static FloatLanes widen(Stored stored) {
        return widen_bfloat16<FloatLanes>(__builtin_convertvector(stored, UnsignedLanes));
    }
    SNNFAST_HD static Stored narrow(FloatLanes value) {
        return __builtin_convertvector((narrow_bfloat16<FloatLanes, UnsignedLanes>(value)), HalfLanes);
    }
};

template <class Storage>
constexpr int lanes = sizeof(Vector<State<Storage>>) / sizeof(State<Storage>);

// A store past the caches, for outputs too large to be found there again. `to` is aligned to the vector's size.
template <class Stored>
SNNFAST_HD void stream(void* to, Stored stored) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Stored) == 64) return _mm512_stream_si512((__m512i*)to, (__m512i)stored);
#endif
#if defined(__AVX__)
    if constexpr (sizeof(Stored) == 32) return _mm256_stream_si256((__m256i*)to, (__m256i)stored);
#endif
#if defined(__SSE2__)
    if constexpr (sizeof(Stored) == 16) return _mm_stream_si128((__m128i*)to, (__m128i)stored);
#endif
    std::memcpy(to, &stored, sizeof(Stored));
}

inline void end_of_streaming() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// A vector of states from `lanes` neighbouring elements, and back. Nothing need be aligned.
template <class Storage>
SNNFAST_HD Vector<State<Storage>> load(const Storage* from) {
    typename LaneConversion<Storage>::Stored stored;
    std::memcpy(&stored, from, sizeof stored);
    return LaneConversion<Storage>::widen(stored);
}

template <class Storage>
SNNFAST_HD void store(Storage* to, Vector<State<Storage>> value) {
    const auto stored = LaneConversion<Storage>::narrow(value);
    std::memcpy(to, &stored, sizeof stored);
}

// Asks for the memory `ahead` bytes behind element i of a row: once for each line, however many vectors it has.
template <class Storage>
SNNFAST_HD void prefetch(const Storage* row, i64 i, i64 ahead) {
    if (sizeof(Storage) * lanes<Storage> >= line_bytes || i * i64(sizeof(Storage)) % line_bytes == 0)
        __builtin_prefetch(reinterpret_cast<const char*>(row + i) + ahead);
}

// How an output is written: as it comes, where the caches hold it; after its memory was asked for, where they may not;
// past them, where they do not.
enum class Writing : int { cached, streamed, fetched };

template <class Storage>
SNNFAST_HD void store_output(Storage* row, i64 i, Vector<State<Storage>> value, Writing how) {
    if (how == Writing::streamed) return stream(row + i, LaneConversion<Storage>::narrow(value));
    if (how == Writing::fetched) prefetch(row, i, prefetch_bytes);
    store(row + i, value);
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
