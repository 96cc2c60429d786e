// Packing spikes to bits: the kernels' launches, for every size of element.
#include "cuda/launch.cuh"
#include "cuda/pack_bits.cuh"

namespace snnfast {
namespace cuda {
namespace {

dim3 blocks_of_pieces(i64 pieces) {
    constexpr i64 per_block = threads_per_block * pieces_per_thread;
    const i64 blocks = (pieces + per_block - 1) / per_block;
    if (blocks > 0x7fffffff) throw std::runtime_error("snnfast: more spikes than one launch can address");
    return dim3(static_cast<unsigned>(blocks));
}

bool is_wide(const void* spikes) { return reinterpret_cast<unsigned long long>(spikes) % 16 == 0; }

}  // namespace

void launch_pack_bits(const PackBitsCall& call, void* stream) {
    const dim3 blocks = blocks_of_pieces((call.count + 7) / 8);
    with_one_of(call.dtype, [&](auto one) {
        using Word = decltype(one);
        if (is_wide(call.spikes))
            launch(pack_bits_kernel<Word, true>, blocks, stream, call);
        else
            launch(pack_bits_kernel<Word, false>, blocks, stream, call);
    });
}

void launch_unpack_bits(const UnpackBitsCall& call, void* stream) {
    with_one_of(call.dtype, [&](auto one) {
        using Word = decltype(one);
        constexpr int width = words_per_access<Word>;
        const dim3 blocks = blocks_of_pieces((call.count + width - 1) / width);
        if (is_wide(call.spikes))
            launch(unpack_bits_kernel<Word, true>, blocks, stream, call, one);
        else
            launch(unpack_bits_kernel<Word, false>, blocks, stream, call, one);
    });
}

}  // namespace cuda
}  // namespace snnfast
