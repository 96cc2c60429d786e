// Prints what a kernel would be launched with: the number of blocks, and the bytes of its parameters.
//
//   arguments WHAT WIDTH STEPS BATCH CHANNELS SPACE LAST
//
// WHAT: forward, backward, moments, normalized, sums or gradients; LAST: 1 for channels-last. Addresses stand for tensors.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/walk.h"

using namespace snnfast;

static std::vector<unsigned char> bytes;

template <class T>
static void append(const T& value) {
    while (bytes.size() % alignof(T)) bytes.push_back(0);
    const auto* const from = reinterpret_cast<const unsigned char*>(&value);
    bytes.insert(bytes.end(), from, from + sizeof(T));
}

template <class T = void>
static T* tensor(int number) {
    // Those with time come first, from 0 to 5 (model.py, TENSORS).
    return reinterpret_cast<T*>((1ull << 44) + (static_cast<unsigned long long>(number) << 40));
}

static Normalization tables(bool backward) {
    Normalization n;
    n.mean = tensor(10);
    n.scale = tensor(11);
    n.shift = tensor(12);
    if (backward) {
        n.through_mean = tensor(13);
        n.through_variance = tensor(14);
    }
    return n;
}

int main(int, char** argv) {
    const std::string what = argv[1];
    const int width = std::atoi(argv[2]);
    const i64 steps = std::atoll(argv[3]), batch = std::atoll(argv[4]), channels = std::atoll(argv[5]);
    const i64 space = std::atoll(argv[6]);
    const bool last = std::atoi(argv[7]), plain = what == "forward" || what == "backward";
    Layout layout;
    layout.steps = steps;
    layout.inner = batch * channels * space;
    layout.channels = plain ? 1 : channels;
    layout.channel_stride = plain || last ? 1 : space;
    for (Strides* strides : {&layout.current, &layout.spikes, &layout.grad_spikes, &layout.grad_current})
        *strides = {layout.inner, layout.inner};
    const Walk walk = walk_of(layout, width);
    void* const checkpoints = steps > checkpoint_interval ? tensor(5) : nullptr;
    if (what == "moments") {
        MomentsCall call;
        call.layout = layout;
        call.current = tensor(1);
        call.sums = tensor<double>(6);
        call.workspace = tensor(7);
        append(call);
    } else if (what == "forward" || what == "normalized") {
        ForwardCall call;
        call.layout = layout;
        if (!plain) call.normalization = tables(false);
        call.current = tensor(1);
        call.spikes = tensor(2);
        call.checkpoints = checkpoints;
        append(call);
    } else {
        BackwardCall call;
        call.layout = layout;
        if (!plain) call.normalization = tables(what == "gradients");
        call.current = tensor(1);
        call.checkpoints = checkpoints;
        call.grad_spikes = tensor(3);
        if (what != "sums") call.grad_current = tensor(4);
        if (what == "sums") {
            call.sums = tensor<double>(6);
            call.workspace = tensor(7);
        }
        append(call);
    }
    append(walk);
    std::printf("%lld %lld ", walk.tiles() * walk.pieces,
                (walk.rows + walk.pieces * walk.ranks - 1) / (walk.pieces * walk.ranks));
    for (unsigned char byte : bytes) std::printf("%02x", byte);
    std::printf("\n");
}
