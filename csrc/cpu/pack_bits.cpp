// Packing spikes to bits on the CPU. Compiled once, for the baseline: with 16-byte vectors the memory is the limit, and
// wider ones gain nothing.
#include "math/pack_bits.h"
#include "cpu/threads.h"
#include "cpu/vec.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {
namespace {

constexpr i64 group = 16;  // elements whose bits are collected together

// The bits of 16 elements.
template <class Word>
SNNFAST_HD unsigned pack_group(const Word* from) {
#if defined(__SSE2__)
    // Zeros are found, narrowed to a byte each, and collected by the one instruction that does so.
    const auto read = [from](int k) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + k); };
    const __m128i zero = _mm_setzero_si128();
    if constexpr (sizeof(Word) == 2) {
        const auto zeros = [&](int k) { return _mm_cmpeq_epi16(_mm_slli_epi16(read(k), 1), zero); };
        return ~static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(zeros(0), zeros(1))));
    } else {
        const auto zeros = [&](int k) {
            if constexpr (sizeof(Word) == 4) {
                return _mm_cmpeq_epi32(_mm_slli_epi32(read(k), 1), zero);
            } else {  // the low and the high halves of four elements
                const __m128 a = _mm_castsi128_ps(_mm_slli_epi64(read(2 * k), 1));
                const __m128 b = _mm_castsi128_ps(_mm_slli_epi64(read(2 * k + 1), 1));
                const __m128i low = _mm_castps_si128(_mm_shuffle_ps(a, b, 0x88));
                const __m128i high = _mm_castps_si128(_mm_shuffle_ps(a, b, 0xdd));
                return _mm_cmpeq_epi32(_mm_or_si128(low, high), zero);
            }
        };
        const __m128i first = _mm_packs_epi32(zeros(0), zeros(1));
        const __m128i second = _mm_packs_epi32(zeros(2), zeros(3));
        return ~static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(first, second)));
    }
#else
    return pack_few<8>(from) | pack_few<8>(from + 8) << 8;
#endif
}

// The spikes of every value of a few bits, 16 bytes of them: what a group is unpacked from. Comparing lanes instead is
// no faster, and SSE2 has no such comparison of 64 bits.
template <class Word>
struct Table {
    typedef Word Vector __attribute__((vector_size(16)));
    static constexpr int count = 16 / sizeof(Word);  // the few
    Vector spikes[1 << count];

    explicit Table(Word one) {
        for (unsigned bits = 0; bits < 1u << count; ++bits)
            for (int k = 0; k < count; ++k) spikes[bits][k] = element_of(bits >> k & 1u, one);
    }
};

// `Streamed`: past the caches; `to` is then aligned to 16 bytes.
template <bool Streamed, class Word>
SNNFAST_HD void unpack_group(Word* to, unsigned bits, const Table<Word>& table) {
    constexpr int count = Table<Word>::count;
    for (int k = 0; k < group; k += count) {
        const auto spikes = table.spikes[(bits >> k) & ((1u << count) - 1)];
        if constexpr (Streamed)
            stream(to + k, spikes);
        else
            std::memcpy(to + k, &spikes, sizeof spikes);
    }
}

// Calls body(first, last) for pieces of [0, count); every first is a multiple of the group.
template <class Body>
void for_pieces(i64 count, int threads, Body body) {
    constexpr i64 piece = pack_bits_piece;
    const i64 pieces = (count + piece - 1) / piece;
    parallel_for(pieces, count < pack_bits_serial_below ? 1 : threads,
                 [&](i64 first, i64 last) { body(first * piece, last * piece < count ? last * piece : count); });
}

template <class Word>
void pack(const PackBitsCall& call, int threads) {
    for_pieces(call.count, threads, [&](i64 first, i64 last) {
        const Word* const spikes = static_cast<const Word*>(call.spikes);
        unsigned char* const packed = call.bits;
        i64 i = first;
        for (; i + group <= last; i += group) {
            __builtin_prefetch(reinterpret_cast<const char*>(spikes + i) + prefetch_bytes);
            const unsigned bits = pack_group(spikes + i);
            packed[i / 8] = static_cast<unsigned char>(bits);
            packed[i / 8 + 1] = static_cast<unsigned char>(bits >> 8);
        }
        for (unsigned bits = 0; i < last; ++i) {
            bits |= bit_of(spikes[i]) << i % 8;
            if (i % 8 == 7 || i + 1 == last) {
                packed[i / 8] = static_cast<unsigned char>(bits);
                bits = 0;
            }
        }
    });
}

template <bool Streamed, class Word>
void unpack(const UnpackBitsCall& call, int threads, Word one) {
    const Table<Word> table(one);
    for_pieces(call.count, threads, [&](i64 first, i64 last) {
        Word* const spikes = static_cast<Word*>(call.spikes);
        const unsigned char* const packed = call.bits;
        i64 i = first;
        for (; i + group <= last; i += group)
            unpack_group<Streamed>(spikes + i, packed[i / 8] | packed[i / 8 + 1] << 8, table);
        for (; i < last; ++i) spikes[i] = element_of(packed[i / 8] >> i % 8 & 1u, one);
        if (Streamed) end_of_streaming();
    });
}

}  // namespace
}  // namespace SNNFAST_TARGET

namespace cpu {

void pack_bits(const PackBitsCall& call, int threads) {
    with_one_of(call.dtype, [&](auto one) { pack<decltype(one)>(call, threads); });
}

void unpack_bits(const UnpackBitsCall& call, int threads) {
    with_one_of(call.dtype, [&](auto one) {
        const bool aligned = reinterpret_cast<unsigned long long>(call.spikes) % 16 == 0;
        if (aligned && call.count * i64(sizeof one) >= unpack_streaming_above)
            unpack<true>(call, threads, one);
        else
            unpack<false>(call, threads, one);
    });
}

}  // namespace cpu
}  // namespace snnfast
