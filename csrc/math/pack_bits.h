// Spikes as bits, one per spike: element i of the memory order is bit i % 8 of byte i / 8. What is not zero is a spike
// (so is NaN; -0.0 is not). The last byte is filled up with zeros.
//
// A copy of bits: the elements are unsigned numbers of the dtype's size here, and no arithmetic sees them as floats.
#pragma once

#include "calls.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

using Word16 = unsigned short;
using Word32 = unsigned;
using Word64 = unsigned long long;

// The bit of one element: its sign aside, is anything set?
template <class Word>
SNNFAST_HD unsigned bit_of(Word element) {
    return static_cast<Word>(element << 1) != 0;
}

// Count elements to the low bits of a byte.
template <int Count, class Word>
SNNFAST_HD unsigned pack_few(const Word* elements) {
    unsigned bits = 0;
    for (int k = 0; k < Count; ++k) bits |= bit_of(elements[k]) << k;
    return bits;
}

// The element of one bit: 0, or the dtype's 1.0 given as `one`.
template <class Word>
SNNFAST_HD Word element_of(unsigned bit, Word one) {
    return static_cast<Word>(0 - static_cast<Word>(bit)) & one;
}

// Calls use(one), the dtype's 1.0 as the unsigned number of its size.
template <class Use>
void with_one_of(DType dtype, Use use) {
    switch (dtype) {
        case DType::float32: return use(Word32{0x3f800000u});
        case DType::float64: return use(Word64{0x3ff0000000000000ull});
        case DType::float16: return use(Word16{0x3c00u});
        case DType::bfloat16: return use(Word16{0x3f80u});
    }
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
