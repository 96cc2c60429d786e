// Chooses the instruction set at run time, once, and holds what needs no vectors of a fixed width.
#include <unistd.h>

#if defined(SNNFAST_X86)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstring>
#include <vector>

#include "cpu_kernels.h"
#include "normalization.h"
#include "threads.h"

namespace snnfast {

namespace cpu {
namespace {

struct InstructionSet {
    const char* name;
    bool (*supported)();
    void (*forward)(const ForwardCall&, int);
    void (*backward)(const BackwardCall&, int);
    void (*moments)(const MomentsCall&, int);
};

#if defined(SNNFAST_X86)
// F16C, which every processor with AVX2 has so far. Not all compilers' __builtin_cpu_supports know it by name.
bool converts_float16() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
}
#endif

// Best first.
const InstructionSet instruction_sets[] = {
#if defined(SNNFAST_X86)
    {"avx512",
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     },
     avx512::forward_on_cpu, avx512::backward_on_cpu, avx512::moments_on_cpu},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && converts_float16(); }, avx2::forward_on_cpu,
     avx2::backward_on_cpu, avx2::moments_on_cpu},
#endif
    {"baseline", [] { return true; }, baseline::forward_on_cpu, baseline::backward_on_cpu, baseline::moments_on_cpu},
};

const InstructionSet* best() {
    for (const InstructionSet& set : instruction_sets)
        if (set.supported()) return &set;
    return nullptr;  // not reached: the baseline runs everywhere
}

std::atomic<const InstructionSet*> in_use{best()};

}  // namespace

void forward(const ForwardCall& call, int threads) { in_use.load()->forward(call, threads); }
void backward(const BackwardCall& call, int threads) { in_use.load()->backward(call, threads); }
void moments(const MomentsCall& call, int threads) { in_use.load()->moments(call, threads); }
const char* instruction_set() { return in_use.load()->name; }

bool use_instruction_set(const char* name) {
    for (const InstructionSet& set : instruction_sets) {
        if (std::strcmp(set.name, name) == 0 && set.supported()) {
            in_use = &set;
            return true;
        }
    }
    return false;
}

// A layer's training moves four tensors of an output's size. Where they fit the last-level cache together, what is
// written is found there again; where they do not, writing past the caches saves reading what is overwritten.
i64 streaming_threshold() {
    static const i64 threshold = [] {
#if defined(_SC_LEVEL3_CACHE_SIZE)
        const i64 cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
        const i64 cache = 0;
#endif
        return (cache > 0 ? cache : i64(16) << 20) / 4;
    }();
    return threshold;
}

namespace {

constexpr i64 serial_threshold = 1 << 15;  // values below which a second thread costs more than it does

// Eight running sums whatever the instruction set, so that the order of additions is one.
template <class S>
double sum_of(const S* values, i64 count) {
    double lane[8] = {};
    i64 i = 0;
    for (; i + 8 <= count; i += 8)
        for (int k = 0; k < 8; ++k) lane[k] += values[i + k];
    for (int k = 0; i < count; ++i, ++k) lane[k] += values[i];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

// One long sum: pieces of a fixed length, then the pieces.
template <class S>
double sum_in_pieces(const S* values, i64 count, int threads) {
    constexpr i64 piece = 1 << 14;
    std::vector<double> sums((count + piece - 1) / piece);
    parallel_for(static_cast<i64>(sums.size()), count < serial_threshold ? 1 : threads, [&](i64 first, i64 last) {
        for (i64 p = first; p < last; ++p)
            sums[p] = sum_of(values + p * piece, count - p * piece < piece ? count - p * piece : piece);
    });
    return sum_of(sums.data(), static_cast<i64>(sums.size()));
}

// Channels that change from neighbour to neighbour (channels-last): rows of all channels at once, in a fixed number of
// shares of the rows, then the shares.
template <class S>
void sum_rows(const S* values, double* sums, const ChannelSumCall& call, int threads) {
    const i64 length = call.channels * call.after;
    const i64 shares = call.before < 64 ? call.before : 64;
    std::vector<double> partial(shares * length);
    parallel_for(shares, call.before * length < serial_threshold ? 1 : threads, [&](i64 first, i64 last) {
        for (i64 share = first; share < last; ++share) {
            double* const row = partial.data() + share * length;
            for (i64 b = call.before * share / shares; b < call.before * (share + 1) / shares; ++b)
                for (i64 i = 0; i < length; ++i) row[i] += values[b * length + i];
        }
    });
    for (i64 c = 0; c < call.channels; ++c) {
        sums[c] = 0;
        for (i64 share = 0; share < shares; ++share)
            for (i64 q = 0; q < call.after; ++q) sums[c] += partial[share * length + c * call.after + q];
    }
}

template <class S>
void sum_channels(const ChannelSumCall& call, int threads) {
    const i64 size = call.before * call.channels * call.after;
    for (i64 a = 0; a < call.arrays; ++a) {
        const S* const values = static_cast<const S*>(call.values) + a * size;
        double* const sums = call.sums + a * call.channels;
        if (call.channels == 1) {
            sums[0] = sum_in_pieces(values, size, threads);
        } else if (call.after < 8) {
            sum_rows(values, sums, call, threads);
        } else {
            parallel_for(call.channels, size < serial_threshold ? 1 : threads, [&](i64 first, i64 last) {
                for (i64 c = first; c < last; ++c) {
                    sums[c] = 0;
                    for (i64 b = 0; b < call.before; ++b)
                        sums[c] += sum_of(values + (b * call.channels + c) * call.after, call.after);
                }
            });
        }
    }
}

template <class Storage>
void run_channels(const ChannelCall& call) {
    for (i64 c = 0; c < call.layout.channels; ++c) channel_step<Storage, State<Storage>>(call, c);
}

}  // namespace

void channel_sum(const ChannelSumCall& call, int threads) {
    if (call.dtype == DType::float64)
        sum_channels<double>(call, threads);
    else
        sum_channels<float>(call, threads);
}

void channel(const ChannelCall& call, int) {
    switch (call.dtype) {
        case DType::float32: return run_channels<float>(call);
        case DType::float64: return run_channels<double>(call);
        case DType::float16: return run_channels<float16>(call);
        case DType::bfloat16: return run_channels<bfloat16>(call);
    }
}

}  // namespace cpu
}  // namespace snnfast
