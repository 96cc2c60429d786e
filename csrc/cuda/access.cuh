// Neighbouring elements as one access moves them. The loads and stores of packs are instructions of our own: the compiler
// splits what it computed into stores of 4 bytes, and sinks loads into the branches that use them, one after the other.
#pragma once

#include "cuda/tuning.h"
#include "math/storage.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

template <bool Small>
struct WordOf {
    using type = unsigned;
};
template <>
struct WordOf<true> {
    using type = unsigned short;
};

template <class T>
struct ByteOf {
    using type = unsigned char;
};
template <class T>
struct ByteOf<const T> {
    using type = const unsigned char;
};

// The bits of Width neighbouring elements.
template <class Storage, int Width>
struct Pack {
    static constexpr int bytes = sizeof(Storage) * Width;
    using Word = typename WordOf<(bytes < 4)>::type;
    static constexpr int words = bytes / sizeof(Word);
    static constexpr int elements_of_word = sizeof(Storage) < sizeof(Word) ? sizeof(Word) / sizeof(Storage) : 1;
    Word word[words];
};

// What one instruction moves.
template <int Words>
struct alignas(Words * 4) Words32 {
    unsigned word[Words];
};

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ void load_words(unsigned* to, const void* from, Words32<4>) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "l"(from));
}
__device__ __forceinline__ void load_words(unsigned* to, const void* from, Words32<2>) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
}
__device__ __forceinline__ void load_words(unsigned* to, const void* from, Words32<1>) {
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(to[0]) : "l"(from));
}
__device__ __forceinline__ void store_words(void* to, const unsigned* from, Words32<4>) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(from[0]), "r"(from[1]), "r"(from[2]),
                 "r"(from[3]));
}
__device__ __forceinline__ void store_words(void* to, const unsigned* from, Words32<2>) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(from[0]), "r"(from[1]));
}
__device__ __forceinline__ void store_words(void* to, const unsigned* from, Words32<1>) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(from[0]));
}
#else
template <int Words>
void load_words(unsigned* to, const void* from, Words32<Words>) {
    const Words32<Words> moved = *static_cast<const Words32<Words>*>(from);
    for (int i = 0; i < Words; ++i) to[i] = moved.word[i];
}
template <int Words>
void store_words(void* to, const unsigned* from, Words32<Words>) {
    Words32<Words> moved;
    for (int i = 0; i < Words; ++i) moved.word[i] = from[i];
    *static_cast<Words32<Words>*>(to) = moved;
}
#endif

template <class Storage, int Width>
__device__ void load_pack(Pack<Storage, Width>& to, const Storage* from) {
    using P = Pack<Storage, Width>;
    if constexpr (P::bytes < 4) {
        to.word[0] = *reinterpret_cast<const unsigned short*>(from);
    } else {
        constexpr int together = P::words < access_bytes / 4 ? P::words : access_bytes / 4;
#pragma unroll
        for (int i = 0; i < P::words; i += together)
            load_words(to.word + i, reinterpret_cast<const unsigned*>(from) + i, Words32<together>{});
    }
}

// A store that never happens, which the compiler cannot know: it must not put off loads until after it.
__device__ inline void hold_loads(bool never, void* to) {
#if defined(__CUDA_ARCH__)
    asm volatile(
        "{ .reg .pred now; setp.ne.u32 now, %0, 0;\n@now st.global.u32 [%1], %0; }" ::"r"(static_cast<unsigned>(never)),
        "l"(to));
#endif
}

// From a step to the next. Packs lie whole packs apart, in numbers that a multiplication of 32 bits covers.
template <class Storage, int Width>
struct StepStride {
    unsigned packs;

    __device__ explicit StepStride(const Strides& strides) : packs(static_cast<unsigned>(strides.step / Width)) {}

    // `step` known to the compiler: one instruction.
    template <class T>
    __device__ T* at(T* from, int step) const {
        constexpr unsigned bytes = sizeof(T) * Width;
        using Byte = typename ByteOf<T>::type;
        return reinterpret_cast<T*>(reinterpret_cast<Byte*>(from) +
                                    static_cast<unsigned long long>(packs) * (step * bytes));
    }
    // Any other. The compiler must not see where the pointer comes from: it would add up the steps, and multiply anew.
    template <class T>
    __device__ T* at_any(T* from, i64 step) const {
        T* found = from + step * i64(packs) * Width;
#if defined(__CUDA_ARCH__)
        asm volatile("" : "+l"(found));
#endif
        return found;
    }
};
template <class Storage>
struct StepStride<Storage, 1> {
    i64 elements;

    __device__ explicit StepStride(const Strides& strides) : elements(strides.step) {}

    template <class T>
    __device__ T* at(T* from, int step) const {
        return from + step * elements;
    }
    template <class T>
    __device__ T* at_any(T* from, i64 step) const {
        return from + step * elements;
    }
};

// A number of steps, of which the first `length` are wanted; the first of all steps is not after the one before `from`. In
// place of the others the last wanted one is loaded again, which the caches answer: no load is conditional, so that all of
// them are issued before one is waited for.
template <int Steps, class Storage, int Width>
__device__ void load_steps(Pack<Storage, Width> (&to)[Steps], const Storage* from,
                           const StepStride<Storage, Width>& stride, int length) {
    if (length >= Steps) {
#pragma unroll
        for (int a = 0; a < Steps; ++a) load_pack(to[a], stride.at(from, a));
    } else {
#pragma unroll
        for (int a = 0; a < Steps; ++a) load_pack(to[a], stride.at_any(from, a < length ? a : length - 1));
    }
}

template <class Storage, int Width>
__device__ void clear(Pack<Storage, Width>& pack) {
#pragma unroll
    for (int i = 0; i < Pack<Storage, Width>::words; ++i) pack.word[i] = 0;
}

template <class Storage, int Width>
__device__ void store_pack(Storage* to, const Pack<Storage, Width>& from) {
    using P = Pack<Storage, Width>;
    if constexpr (P::bytes < 4) {
        *reinterpret_cast<unsigned short*>(to) = from.word[0];
    } else {
        constexpr int together = P::words < access_bytes / 4 ? P::words : access_bytes / 4;
#pragma unroll
        for (int i = 0; i < P::words; i += together)
            store_words(reinterpret_cast<unsigned*>(to) + i, from.word + i, Words32<together>{});
    }
}

// Elements to the numbers that a neuron computes in, and back.

template <class Storage, int Width>
__device__ State<Storage> element(const Pack<Storage, Width>& pack, int w) {
    if constexpr (sizeof(Storage) == 8) {
        return bits_as<double>(static_cast<unsigned long long>(pack.word[2 * w + 1]) << 32 | pack.word[2 * w]);
    } else if constexpr (sizeof(Storage) == 4) {
        return bits_as<float>(pack.word[w]);
    } else if constexpr (Width == 1) {
        return widen(Storage{pack.word[0]});
    } else {
        return w % 2 ? widen_high<Storage>(pack.word[w / 2]) : widen_low<Storage>(pack.word[w / 2]);
    }
}

template <int Width, class Storage>
__device__ void widen_pack(State<Storage> (&to)[Width], const Pack<Storage, Width>& pack) {
#pragma unroll
    for (int w = 0; w < Width; ++w) to[w] = element(pack, w);
}

template <int Width, class Storage>
__device__ void narrow_pack(Pack<Storage, Width>& to, const State<Storage> (&from)[Width]) {
#pragma unroll
    for (int w = 0; w < Width; ++w) {
        if constexpr (sizeof(Storage) == 8) {
            const auto bits = bits_as<unsigned long long>(from[w]);
            to.word[2 * w] = static_cast<unsigned>(bits);
            to.word[2 * w + 1] = static_cast<unsigned>(bits >> 32);
        } else if constexpr (sizeof(Storage) == 4) {
            to.word[w] = bits_as<unsigned>(from[w]);
        } else if constexpr (Width == 1) {
            to.word[0] = Narrow<Storage>::from(from[0]).bits;
        } else if (w % 2) {
            to.word[w / 2] = narrow_pair<Storage>(from[w - 1], from[w]);
        }
    }
}

template <int Width, class Storage>
__device__ void load(State<Storage> (&to)[Width], const Storage* from) {
    Pack<Storage, Width> pack;
    load_pack(pack, from);
    widen_pack(to, pack);
}

template <int Width, class Storage>
__device__ void store(Storage* to, const State<Storage> (&from)[Width]) {
    Pack<Storage, Width> pack;
    narrow_pack(pack, from);
    store_pack(to, pack);
}

template <class S, int Width>
__device__ void fill(S (&to)[Width], S value) {
#pragma unroll
    for (int w = 0; w < Width; ++w) to[w] = value;
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
