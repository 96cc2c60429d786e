// The CUDA kernels that pack spikes to bits. The tests also run this file on the host; keep it free of CUDA's headers.
//
// A thread moves a few pieces that lie a block's width apart, so that neighbouring threads touch neighbouring memory;
// it issues all its loads before the first store. Wide: the spikes start on 16 bytes and are read and written 16 at a
// time.
#pragma once

#include "cuda/access.cuh"
#include "math/pack_bits.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

template <class Word>
constexpr int words_per_access = access_bytes / sizeof(Word);

// The elements of a pack as unsigned numbers.
template <class Word, int Width>
__device__ void take_apart(Word (&to)[Width], const Pack<Word, Width>& pack) {
#pragma unroll
    for (int k = 0; k < Width; ++k) {
        if constexpr (sizeof(Word) == 8)
            to[k] = static_cast<Word>(pack.word[2 * k + 1]) << 32 | pack.word[2 * k];
        else
            to[k] = static_cast<Word>(pack.word[k * sizeof(Word) / 4] >> k * 8 * sizeof(Word) % 32);
    }
}

template <class Word, int Width>
__device__ void put_together(Pack<Word, Width>& pack, const Word (&from)[Width]) {
    clear(pack);
#pragma unroll
    for (int k = 0; k < Width; ++k) {
        if constexpr (sizeof(Word) == 8) {
            pack.word[2 * k] = static_cast<unsigned>(from[k]);
            pack.word[2 * k + 1] = static_cast<unsigned>(from[k] >> 32);
        } else {
            pack.word[k * sizeof(Word) / 4] |= static_cast<unsigned>(from[k]) << k * 8 * sizeof(Word) % 32;
        }
    }
}

__device__ inline i64 piece(int nth) {
    return (static_cast<i64>(blockIdx.x) * pieces_per_thread + nth) * threads_per_block + threadIdx.x;
}

template <class Word, bool Wide>
__device__ unsigned pack_byte(const Word* from) {
    if constexpr (Wide) {
        constexpr int width = words_per_access<Word>;
        unsigned bits = 0;
#pragma unroll
        for (int k = 0; k < 8; k += width) {
            Pack<Word, width> together;
            Word elements[width];
            load_pack(together, from + k);
            take_apart(elements, together);
            bits |= pack_few<width>(elements) << k;
        }
        return bits;
    } else {
        return pack_few<8>(from);
    }
}

// A piece is a byte of bits: eight spikes.
template <class Word, bool Wide>
__global__ void __launch_bounds__(threads_per_block) pack_bits_kernel(PackBitsCall call) {
    const Word* spikes = static_cast<const Word*>(call.spikes);
    const i64 whole = call.count / 8;
    unsigned bits[pieces_per_thread];
#pragma unroll
    for (int p = 0; p < pieces_per_thread; ++p) {
        const i64 byte = piece(p);
        bits[p] = byte < whole ? pack_byte<Word, Wide>(spikes + byte * 8) : 0;
    }
#pragma unroll
    for (int p = 0; p < pieces_per_thread; ++p) {
        const i64 byte = piece(p);
        if (byte > whole || byte * 8 == call.count) return;
        if (byte == whole)
            for (i64 i = byte * 8; i < call.count; ++i) bits[p] |= bit_of(spikes[i]) << i % 8;
        call.bits[byte] = static_cast<unsigned char>(bits[p]);
    }
}

// A piece is one access of 16 bytes: the threads that share a byte of bits are neighbours.
template <class Word, bool Wide>
__global__ void __launch_bounds__(threads_per_block) unpack_bits_kernel(UnpackBitsCall call, Word one) {
    Word* spikes = static_cast<Word*>(call.spikes);
    constexpr int width = words_per_access<Word>;
    unsigned bits[pieces_per_thread];
#pragma unroll
    for (int p = 0; p < pieces_per_thread; ++p) {
        const i64 first = piece(p) * width;
        bits[p] = first < call.count ? call.bits[first / 8] >> first % 8 : 0;
    }
#pragma unroll
    for (int p = 0; p < pieces_per_thread; ++p) {
        const i64 first = piece(p) * width;
        if (Wide && first + width <= call.count) {
            Word elements[width];
            Pack<Word, width> together;
#pragma unroll
            for (int k = 0; k < width; ++k) elements[k] = element_of(bits[p] >> k & 1u, one);
            put_together(together, elements);
            store_pack(spikes + first, together);
        } else {
            for (int k = 0; k < width && first + k < call.count; ++k)
                spikes[first + k] = element_of(bits[p] >> k & 1u, one);
        }
    }
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
