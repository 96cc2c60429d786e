// Sums per channel on the CPU, in double and in an order that depends on nothing but the sizes.
#pragma once

#include <vector>

#include "calls.h"
#include "cpu/threads.h"
#include "cpu/tuning.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// Running sums of a fixed number whatever the instruction set, so that the order of additions is one.
template <class S>
double sum_of(const S* values, i64 count) {
    constexpr int running = 32;
    double lane[running] = {};
    i64 i = 0;
    for (; i + running <= count; i += running)
        for (int k = 0; k < running; ++k) lane[k] += values[i + k];
    for (int k = 0; i < count; ++i, ++k) lane[k] += values[i];
    for (int half = running / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k) lane[k] += lane[k + half];
    return lane[0];
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

// Of two arrays that are [neurons] of the state's dtype, one after the other.
inline ChannelSumCall sums_of_neurons(DType dtype, const Layout& layout, const void* values, double* sums) {
    ChannelSumCall call;
    call.dtype = dtype == DType::float64 ? DType::float64 : DType::float32;
    call.arrays = 2;
    call.channels = layout.channels;
    call.after = layout.channels == 1 ? 1 : layout.channel_stride;
    call.before = layout.neurons() / (call.channels * call.after);
    call.values = values;
    call.sums = sums;
    return call;
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
