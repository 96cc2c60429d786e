// Chooses the instruction set at run time, once, and holds what needs no vectors of a fixed width.
#include <atomic>
#include <cstring>
#include <vector>

#include "cpu_kernels.h"
#include "threads.h"

namespace snnfast {

namespace cpu {
namespace {

struct InstructionSet {
    const char* name;
    bool (*supported)();
    void (*forward)(const ForwardCall&, int);
    void (*backward)(const BackwardCall&, int);
};

// Best first.
const InstructionSet instruction_sets[] = {
#if defined(SNNFAST_X86)
    {"avx512",
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     },
     avx512::forward_on_cpu, avx512::backward_on_cpu},
    {"avx2", [] { return bool(__builtin_cpu_supports("avx2")); }, avx2::forward_on_cpu, avx2::backward_on_cpu},
#endif
    {"baseline", [] { return true; }, baseline::forward_on_cpu, baseline::backward_on_cpu},
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

namespace {

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

template <class S>
void sum_channels(const ChannelSumCall& call, int threads) {
    const S* values = static_cast<const S*>(call.values);
    if (call.channels == 1) {  // split the neurons instead of the channels
        constexpr i64 piece = 1 << 14;
        const i64 count = call.before * call.after;
        std::vector<double> sums((count + piece - 1) / piece);
        parallel_for(static_cast<i64>(sums.size()), threads, [&](i64 first, i64 last) {
            for (i64 p = first; p < last; ++p) {
                const i64 length = count - p * piece < piece ? count - p * piece : piece;
                sums[p] = sum_of(values + p * piece, length);
            }
        });
        call.sums[0] = sum_of(sums.data(), static_cast<i64>(sums.size()));
        return;
    }
    const i64 pieces = call.before * call.channels * call.after < (1 << 15) ? 1 : threads;
    parallel_for(call.channels, static_cast<int>(pieces), [&](i64 first, i64 last) {
        for (i64 c = first; c < last; ++c) call.sums[c] = 0;
        for (i64 b = 0; b < call.before; ++b)
            for (i64 c = first; c < last; ++c)
                call.sums[c] += sum_of(values + (b * call.channels + c) * call.after, call.after);
    });
}

}  // namespace

void channel_sum(const ChannelSumCall& call, int threads) {
    if (call.dtype == DType::float64)
        sum_channels<double>(call, threads);
    else
        sum_channels<float>(call, threads);
}

}  // namespace cpu
}  // namespace snnfast
