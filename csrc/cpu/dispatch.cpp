// Chooses the instruction set at run time, once, and holds what needs no vectors of a fixed width.
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstring>
#include <initializer_list>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "math/normalization.h"

namespace snnfast {

namespace cpu {
namespace {

struct InstructionSet {
    const char* name;
    bool (*supported)();
    void (*forward)(const ForwardCall&, int);
    void (*backward)(const BackwardCall&, int);
    void (*moments)(const MomentsCall&, int);
    void (*gradient_through)(const GradientThroughCall&, int);
    void (*channel_sum)(const ChannelSumCall&, int);
};

#if defined(SNNFAST_WITH_AVX2)
// F16C, which every processor with AVX2 has so far. Not all compilers' __builtin_cpu_supports know it by name.
bool converts_float16() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
}
#endif

// Best first; those that were built (CMakeLists.txt, SNNFAST_CPU_SETS).
const InstructionSet instruction_sets[] = {
#if defined(SNNFAST_WITH_AVX512)
    {"avx512",
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     },
     avx512::forward, avx512::backward, avx512::moments, avx512::gradient_through, avx512::channel_sum},
#endif
#if defined(SNNFAST_WITH_AVX2)
    {"avx2", [] { return __builtin_cpu_supports("avx2") && converts_float16(); }, avx2::forward, avx2::backward,
     avx2::moments, avx2::gradient_through, avx2::channel_sum},
#endif
#if defined(SNNFAST_WITH_BASELINE)
    {"baseline", [] { return true; }, baseline::forward, baseline::backward, baseline::moments,
     baseline::gradient_through, baseline::channel_sum},
#endif
};

const InstructionSet* best() {
    for (const InstructionSet& set : instruction_sets)
        if (set.supported()) return &set;
    return nullptr;  // the baseline, which runs everywhere, was left out of the build
}

std::atomic<const InstructionSet*> in_use{best()};

const InstructionSet& chosen() {
    const InstructionSet* set = in_use.load();
    if (!set)
        throw std::runtime_error(
            "snnfast: this processor has none of the instruction sets that the CPU kernels were built for; install "
            "again with SNNFAST_CPU_SETS=all");
    return *set;
}

}  // namespace

void forward(const ForwardCall& call, int threads) { chosen().forward(call, threads); }
void backward(const BackwardCall& call, int threads) { chosen().backward(call, threads); }
void moments(const MomentsCall& call, int threads) { chosen().moments(call, threads); }
void gradient_through(const GradientThroughCall& call, int threads) { chosen().gradient_through(call, threads); }
void channel_sum(const ChannelSumCall& call, int threads) { chosen().channel_sum(call, threads); }
i64 sums_workspace(DType dtype, const Layout& layout) {
    return 2 * layout.neurons() * (dtype == DType::float64 ? 8 : 4);
}

const char* instruction_set() {
    const InstructionSet* set = in_use.load();
    return set ? set->name : "none";
}

bool use_instruction_set(const char* name) {
    for (const InstructionSet& set : instruction_sets) {
        if (std::strcmp(set.name, name) == 0 && set.supported()) {
            in_use = &set;
            return true;
        }
    }
    return false;
}

namespace {

// Bytes of the third-level cache that a core reaches; 0 where that is not told. sysconf tells what all dies of a
// processor have together, of which an AMD core reaches one die's.
i64 cache_of_a_core() {
#if defined(__x86_64__)
    for (const unsigned leaf : {0x8000001du, 4u}) {  // AMD's, Intel's
        unsigned kind, shape, sets, unused;
        for (unsigned index = 0; index < 16 && __get_cpuid_count(leaf, index, &kind, &shape, &sets, &unused); ++index) {
            const unsigned type = kind & 31, level = kind >> 5 & 7;
            const i64 line = (shape & 0xfff) + 1, partitions = (shape >> 12 & 0x3ff) + 1, ways = (shape >> 22) + 1;
            if (type != 0 && level == 3) return line * partitions * ways * (i64(sets) + 1);
        }
    }
#endif
#if defined(_SC_LEVEL3_CACHE_SIZE)
    return sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
    return 0;
#endif
}

// A layer's training moves four tensors of an output's size. Where they fit the last-level cache together, what is
// written is found there again; where they do not, writing past the caches saves reading what is overwritten.
std::atomic<i64>& bytes_to_stream() {
    static std::atomic<i64> bytes{[] {
        const i64 cache = cache_of_a_core();
        return (cache > 0 ? cache : i64(16) << 20) / 4;
    }()};
    return bytes;
}

}  // namespace

i64 streaming_threshold() { return bytes_to_stream(); }
void use_streaming_threshold(i64 bytes) { bytes_to_stream() = bytes; }

void statistics(const StatisticsCall& call, int) {
    with_storage(call.dtype, [&](auto storage) {
        for (i64 c = 0; c < call.layout.channels; ++c) statistics_step<decltype(storage)>(call, c);
    });
}

void normalization(const NormalizationCall& call, int) {
    with_state(call.dtype, [&](auto state) {
        for (i64 c = 0; c < call.channels; ++c) normalization_step<decltype(state)>(call, c);
    });
}

void normalization_gradients(const NormalizationGradientsCall& call, int) {
    with_state(call.dtype, [&](auto state) {
        for (i64 c = 0; c < call.channels; ++c) normalization_gradients_step<decltype(state)>(call, c);
    });
}

}  // namespace cpu
}  // namespace snnfast
