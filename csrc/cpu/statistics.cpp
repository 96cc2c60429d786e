// The passes of batch normalization on the CPU that no neuron takes part in: statistics, the sums per channel after them
// and after the backward pass, the gradient through them; compiled once per instruction set (SNNFAST_TARGET names the
// namespace).
#include "cpu/dispatch.h"
#include "cpu/gradient_through.h"
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

void gradient_through(const GradientThroughCall& call, int threads) {
    if (call.dtype == DType::float64)
        run_tiles<double, GradientThroughTiles<double>>(call, threads);
    else
        run_tiles<float, GradientThroughTiles<float>>(call, threads);
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
