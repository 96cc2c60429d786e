// The CUDA side of calls.h: device guard, choice of dtype, launch, error check. Never synchronizes, so that a stream
// may be captured into a CUDA graph.
#include "cuda/launch.cuh"
#include "math/pack_bits.h"

namespace snnfast {
namespace cuda {

extern template struct Launcher<float>;
extern template struct Launcher<double>;
extern template struct Launcher<float16>;
extern template struct Launcher<bfloat16>;

// The same on the current device (instantiate/pack_bits.cu).
void launch_pack_bits(const PackBitsCall& call, void* stream);
void launch_unpack_bits(const UnpackBitsCall& call, void* stream);

namespace {

class DeviceGuard {
public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&previous_), "cudaGetDevice");
        if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
        switched_ = device != previous_;
    }
    ~DeviceGuard() {
        if (switched_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int previous_ = 0;
    bool switched_ = false;
};

template <class Use>
void with_launcher(DType dtype, Use use) {
    with_storage(dtype, [&](auto storage) { use(Launcher<decltype(storage)>{}); });
}

// Threads of a block that share a channel's values, as channel_sum_kernel has them.
i64 threads_of_channel(i64 after) { return after < warp ? threads_per_block / warp : threads_per_block; }

unsigned pieces_of(i64 before, i64 after) {
    const i64 pieces = before * after / (threads_of_channel(after) * values_per_thread);
    return static_cast<unsigned>(pieces < 1 ? 1 : pieces > most_pieces ? most_pieces : pieces);
}

template <class S>
void launch_channel_sum(const S* values, double* sums, i64 arrays, i64 before, i64 channels, i64 after, unsigned pieces,
                        void* stream) {
    const i64 blocks = arrays * (after < warp ? (channels + warp - 1) / warp : channels);
    launch(channel_sum_kernel<S>, dim3(static_cast<unsigned>(blocks), pieces), stream, values, sums, before, channels,
           after, Divisor(after));
}

}  // namespace

void forward(const ForwardCall& call, int device, void* stream) {
    const DeviceGuard guard(device);
    with_launcher(call.dtype, [&](auto launcher) { launcher.forward(call, stream); });
}

void backward(const BackwardCall& call, int device, void* stream) {
    const DeviceGuard guard(device);
    with_launcher(call.dtype, [&](auto launcher) { launcher.backward(call, stream); });
}

i64 channel_sum_workspace(i64 arrays, i64 before, i64 channels, i64 after) {
    return arrays * channels * pieces_of(before, after);
}

void channel_sum(const ChannelSumCall& call, int device, void* stream) {
    const DeviceGuard guard(device);
    const unsigned pieces = pieces_of(call.before, call.after);
    with_state(call.dtype, [&](auto state) {
        launch_channel_sum(static_cast<const decltype(state)*>(call.values), call.workspace, call.arrays, call.before,
                           call.channels, call.after, pieces, stream);
    });
    // The pieces of a channel lie side by side: [arrays, 1, channels, pieces].
    launch_channel_sum(static_cast<const double*>(call.workspace), call.sums, call.arrays, 1, call.channels, pieces, 1,
                       stream);
}

void sum_parts(void* workspace, double* sums, i64 channels, i64 parts, void* stream) {
    launch_channel_sum(static_cast<const double*>(workspace), sums, 2, 1, channels, parts, 1, stream);
}

i64 sums_workspace(DType dtype, const Layout& layout) {
    i64 bytes = 0;
    with_launcher(dtype, [&](auto launcher) { bytes = launcher.sums_workspace(layout); });
    return bytes;
}

void moments(const MomentsCall& call, int device, void* stream) {
    const DeviceGuard guard(device);
    with_launcher(call.dtype, [&](auto launcher) { launcher.moments(call, stream); });
}

void statistics(const StatisticsCall& call, int device, void* stream) {
    const DeviceGuard guard(device);
    with_launcher(call.dtype, [&](auto launcher) { launcher.statistics(call, stream); });
}

void normalization(const NormalizationCall& call, int device, void* stream) {
    const DeviceGuard guard(device);
    with_state(call.dtype, [&](auto state) {
        launch(normalization_kernel<decltype(state)>, blocks_of_channels(call.channels), stream, call);
    });
}

void normalization_gradients(const NormalizationGradientsCall& call, int device, void* stream) {
    const DeviceGuard guard(device);
    with_state(call.dtype, [&](auto state) {
        launch(normalization_gradients_kernel<decltype(state)>, blocks_of_channels(call.channels), stream, call);
    });
}

void pack_bits(const PackBitsCall& call, int device, void* stream) {
    const DeviceGuard guard(device);
    launch_pack_bits(call, stream);
}

void unpack_bits(const UnpackBitsCall& call, int device, void* stream) {
    const DeviceGuard guard(device);
    launch_unpack_bits(call, stream);
}

bool compiled() { return true; }
const char* toolkit() { return SNNFAST_CUDA_TOOLKIT; }
const char* architectures() { return SNNFAST_CUDA_ARCHITECTURES; }

}  // namespace cuda
}  // namespace snnfast
