// What decides the speed of the CUDA kernels, and of their results only the order in which sums per channel add up.
#pragma once

#include "math/neuron.h"
#include "math/normalization.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Four warps, the granularity of a multiprocessor's schedulers; also every kernel's launch bound.
constexpr int threads_per_block = 128;

// Steps whose loads are issued together: stores in between would hold them back. Also the block of a backward pass over
// no more steps, which then need not keep registers for sixteen.
constexpr int steps_ahead = 4;

// Steps that the backward pass rebuilds in registers: as far as the kept potentials lie apart.
constexpr int backward_block = checkpoint_interval;

// The same of the pass that only reads.
constexpr int moments_ahead = 4;

// Over no more steps a batch norm's passes need registers for these alone: a fourth block of threads then has room, where
// neighbours share their channels' values.
constexpr int middle_block = 12;

constexpr int access_bytes = 16;  // of one access at most: what a thread can load or store by one instruction

// Neurons of a thread where memory allows: accesses of sixteen bytes.
template <class Storage>
constexpr int forward_width = access_bytes / sizeof(Storage);
// Over few steps the backward pass has registers for as many, unless each has a channel of its own; over more, eight neurons
// in a 16-bit type would spill them.
template <class Storage>
constexpr int short_backward_width = sizeof(Storage) == 8 ? 1 : access_bytes / sizeof(Storage);
template <class Storage>
constexpr int backward_width = sizeof(Storage) == 8 ? 1 : 4;

// Blocks that a multiprocessor must have registers for: loads in flight count, and what hides their latency.
template <class Storage, int Block, class D, Currents How, Channels channels>
constexpr int resident_blocks = sizeof(Storage) == 8 || (is_general<D> && How == Currents::normalized) ? 2
                                : Block == middle_block && channels == Channels::shared                ? 4
                                                                                                       : 3;

// Of doubles one is an access that memory is as fast with, and two fill the registers.
template <class Storage>
constexpr bool wide_backward = sizeof(Storage) < 8;

// A thread walks down as many rows as leave this number of blocks, several times what a GPU holds at once.
constexpr i64 least_blocks = 2048;
constexpr i64 longest_walk = 8;

// Steps of all the rows of a thread, if they are several: as many terms its sums have before they are added in double.
constexpr i64 longest_sum = 512;

// Sums per channel: enough values for a thread to be worth starting, and no more pieces than one block then sums.
constexpr int warp = 32;
constexpr i64 values_per_thread = 16;
constexpr i64 most_pieces = 512;

// Spikes to bits: accesses that a thread issues before its first store.
constexpr int pieces_per_thread = 4;

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
