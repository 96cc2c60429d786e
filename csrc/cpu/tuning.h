// What decides the speed of the CPU kernels and nothing of their results.
#pragma once

#include "math/platform.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Neurons of a tile: few enough for their potentials of a block of steps to stay in the second-level cache.
constexpr i64 tile_length = 1024;

// Steps at once. Where extras are asked for, one: those kernels are many, and each body more is build time.
template <bool Extras>
constexpr int pass_steps = Extras ? 1 : 4;
// On the way back over rebuilt potentials, fewer: from a potential to what is passed on, a step is a chain of a dozen
// operations, and a processor's window holds a few such chains.
template <bool Extras>
constexpr int pass_steps_back = Extras ? 1 : 2;

// Rows of rebuilt potentials do not start a multiple of 4096 bytes apart, as those of the tensors often do: all of them
// would then compete for the same few places of the first-level cache.
constexpr i64 rebuilt_length = tile_length + 64;

// Values below which a second thread costs more than it does.
constexpr i64 serial_threshold = 1 << 15;

// How far ahead of its use memory is asked for: hardware does not follow rows that end with their tile. Spikes become
// bits a fifth faster than with what the hardware asks for alone. What no cache holds is asked for earlier.
constexpr i64 prefetch_bytes = 1024;
constexpr i64 prefetch_bytes_of_memory = 2048;
constexpr i64 line_bytes = 64;

// Spikes to bits.
constexpr i64 pack_bits_piece = i64(1) << 14;         // elements a thread takes at once; a multiple of a group
constexpr i64 pack_bits_serial_below = i64(1) << 17;  // elements for which a second thread costs more than it does
constexpr i64 unpack_streaming_above = i64(4) << 20;  // bytes of spikes that no cache would hold until they are read

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
