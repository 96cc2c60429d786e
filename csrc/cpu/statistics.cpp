// The statistics pass of batch normalization on the CPU, and the sums per channel after it and after the backward pass;
// compiled once per instruction set (SNNFAST_TARGET names the namespace).
#include "cpu/dispatch.h"
#include "cpu/moments.h"
#include "cpu/sums.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

void channel_sum(const ChannelSumCall& call, int threads) {
    if (call.dtype == DType::float64)
        sum_channels<double>(call, threads);
    else
        sum_channels<float>(call, threads);
}

void moments(const MomentsCall& call, int threads) {
    with_storage(call.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        run_tiles<Storage, MomentsTiles<Storage>>(call, threads);
    });
    channel_sum(sums_of_neurons(call.dtype, call.layout, call.workspace, call.sums), threads);
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
