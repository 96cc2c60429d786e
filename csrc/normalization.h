// Batch normalization of the currents: the arithmetic of one neuron and of one channel (MATH.md section 4).
//
// A channel's statistics are those of its neurons over all their steps. Every neuron sums over its own steps in the
// state's dtype, relative to its own first current; the neurons of a channel are summed in double, relative to one
// pivot. So neither a mean far from zero nor an outlier takes the digits of the variance.
// V is a number or a SIMD vector.
#pragma once

#include "storage.h"
#include "surrogate.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// How a kernel reads currents, as a policy: as they are; normalized; or as the call says.
enum class Currents { plain, normalized, any };

// One neuron's normalization. The mean is rounded to the state's dtype; what it lost is in `shift` and `through_mean`.
template <class V>
struct Normalizer {
    V mean;
    V scale;
    V shift;
    V through_mean;
    V through_variance;
};

// The current that the neuron integrates, before a residual is added. Never rearranged to x * scale + shift, which
// would lose the digits of x - mean.
template <class V>
SNNFAST_HD V normalize(const Normalizer<V>& n, V x) {
    return V(V(x - n.mean) * n.scale) + n.shift;
}

// dL/dx from dL/dI. `batch`: the statistics are the batch's own, and the gradient passes through them too.
template <class V>
SNNFAST_HD V gradient_through(const Normalizer<V>& n, V grad, V centered, bool batch) {
    return n.scale * (batch ? V(V(grad - n.through_mean) - V(centered * n.through_variance)) : grad);
}

// What one neuron contributes: the mean over its steps and the sum of squares over them, both relative to the channel's
// pivot. `sum` and `squares` are relative to the neuron's first current.
template <class V>
struct Contribution {
    V mean;
    V squares;
};

template <class V>
SNNFAST_HD Contribution<V> contribution(V first, V pivot, V sum, V squares, Scalar<V> steps) {
    const V mean_from_first = sum / steps;
    const V mean = V(first - pivot) + mean_from_first;
    const V around_mean = squares - V(sum * mean_from_first);
    return {mean, V(around_mean + V(V(mean * mean) * steps))};
}

// Where a channel's first neuron has its first current: the channel's pivot.
SNNFAST_HD i64 pivot_offset(const Layout& layout, i64 channel) {
    const i64 flat = channel * layout.channel_stride;
    return flat / layout.inner * layout.current.outer + flat % layout.inner;
}

// The three steps of ChannelCall, for one channel. S is the state's dtype.
template <class Storage, class S>
SNNFAST_HD void finish_moments(const ChannelCall& call, i64 c) {
    const i64 channels = call.layout.channels;
    const double steps = call.layout.held ? 1.0 : double(call.layout.steps);
    const double from_pivot = call.sums[c] / (call.count / steps);
    const double variance = call.sums[channels + c] / call.count - from_pivot * from_pivot;
    const double pivot = widen(static_cast<const Storage*>(call.current)[pivot_offset(call.layout, c)]);
    call.moments[c] = pivot + from_pivot;
    call.moments[channels + c] = variance < 0 ? 0.0 : variance;  // NaN stays NaN
}

template <class S>
SNNFAST_HD void make_tables(const ChannelCall& call, i64 c) {
    const i64 channels = call.layout.channels;
    S* const tables = static_cast<S*>(call.tables);
    const double mean = call.moments[c];
    const double inverse = 1.0 / square_root(call.moments[channels + c] + call.eps);
    const double scale = call.weight ? call.weight[c] * inverse : inverse;
    const S rounded = S(mean);
    tables[c] = rounded;
    tables[channels + c] = S(scale);
    tables[2 * channels + c] = S((call.bias ? call.bias[c] : 0.0) - (mean - double(rounded)) * scale);
}

template <class S>
SNNFAST_HD void make_gradients(const ChannelCall& call, i64 c) {
    const i64 channels = call.layout.channels;
    const double mean = call.moments[c];
    const double inverse = 1.0 / square_root(call.moments[channels + c] + call.eps);
    const double lost = mean - double(static_cast<const S*>(call.tables)[c]);  // to the rounding of the mean
    const double gradient = call.sums[c];                                        // sum of dL/dI
    const double product = inverse * (call.sums[channels + c] - lost * gradient);  // sum of dL/dI * x_hat
    if (call.grad_parameters) {
        call.grad_parameters[c] = product;
        call.grad_parameters[channels + c] = gradient;
    }
    if (call.gradient_tables) {
        S* const to = static_cast<S*>(call.gradient_tables);
        const double through_variance = inverse * (product / call.count);
        to[c] = S(gradient / call.count - lost * through_variance);
        to[channels + c] = S(through_variance);
    }
}

template <class Storage, class S>
SNNFAST_HD void channel_step(const ChannelCall& call, i64 c) {
    switch (call.what) {
        case ChannelCall::What::moments: return finish_moments<Storage, S>(call, c);
        case ChannelCall::What::tables: return make_tables<S>(call, c);
        case ChannelCall::What::gradients: return make_gradients<S>(call, c);
    }
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
