// What decides the speed of the CUDA kernels, and of their results only the order in which sums per channel add up.
#pragma once

#include "calls.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Four warps, the granularity of a multiprocessor's schedulers; also every kernel's launch bound.
constexpr int threads_per_block = 128;

// Steps whose loads are issued together: stores in between would hold them back. Also the block of a backward pass over
// no more steps, which then need not keep registers for sixteen.
constexpr int steps_ahead = 4;

// Steps that the backward pass rebuilds in registers: as far as the kept potentials lie apart.
constexpr int backward_block = checkpoint_interval;

constexpr int access_bytes = 16;  // of one access at most: what a thread can load or store by one instruction

// Neurons of a thread where memory allows: accesses of sixteen bytes.
template <class Storage>
constexpr int forward_width = access_bytes / sizeof(Storage);
// Sixteen-byte accesses in a 16-bit type would be eight neurons a thread, and their blocks spill registers.
template <class Storage>
constexpr int backward_width = sizeof(Storage) == 8 ? 2 : 4;

// Two doubles' normalization and potentials are more than a thread's registers.
template <class Storage>
constexpr bool normalized_backward_fits = sizeof(Storage) < 8;

// Sums per channel: enough values for a thread to be worth starting, and no more pieces than one block then sums.
constexpr int warp = 32;
constexpr i64 values_per_thread = 16;
constexpr i64 most_pieces = 512;

// Spikes to bits: accesses that a thread issues before its first store.
constexpr int pieces_per_thread = 4;

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
