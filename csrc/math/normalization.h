// Batch normalization of the currents: the arithmetic of one neuron and of one channel (MATH.md section 4).
//
// A channel's statistics are those of its neurons over all their steps. Every neuron sums over its own steps in the
// state's dtype, relative to its own first current; the neurons of a channel are summed in double, relative to one
// pivot. So neither a mean far from zero nor an outlier takes the digits of the variance.
// V is a number or a SIMD vector.
#pragma once

#include "math/storage.h"
#include "math/surrogate.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

// How a kernel reads currents, as a policy: as they are; normalized; or as the call says.
enum class Currents { plain, normalized, any };

// Whether neighbouring neurons that a kernel takes together are of one channel, as a policy: all of one; or each its own.
enum class Channels { shared, own };

// What a backward pass is for, as a policy: the sums of gradients that the batch's statistics ask for; the gradients; or as
// the call says, both included.
enum class Pass { sums, gradients, any };

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
    return n.scale * (batch ? V(subtract_product(V(grad - n.through_mean), centered, n.through_variance)) : grad);
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
    const V mean_from_first = approximate_quotient(sum, steps);
    const V mean = V(first - pivot) + mean_from_first;
    const V around_mean = squares - V(sum * mean_from_first);
    return {mean, V(around_mean + V(V(mean * mean) * steps))};
}

// Where a channel's first neuron has its first current: the channel's pivot.
SNNFAST_HD i64 pivot_offset(const Layout& layout, i64 channel) {
    const i64 flat = channel * layout.channel_stride;
    return flat / layout.inner * layout.current.outer + flat % layout.inner;
}

// Parameters are read and their gradients written in a dtype of their own.
SNNFAST_HD double read_parameter(const void* from, DType dtype, i64 index, double otherwise) {
    if (!from) return otherwise;
    switch (dtype) {
        case DType::float32: return static_cast<const float*>(from)[index];
        case DType::float64: return static_cast<const double*>(from)[index];
        case DType::float16: return widen(static_cast<const float16*>(from)[index]);
        case DType::bfloat16: return widen(static_cast<const bfloat16*>(from)[index]);
    }
    return otherwise;
}

SNNFAST_HD void write_parameter(void* to, DType dtype, i64 index, double value) {
    if (!to) return;
    switch (dtype) {
        case DType::float32: static_cast<float*>(to)[index] = float(value); return;
        case DType::float64: static_cast<double*>(to)[index] = value; return;
        case DType::float16: static_cast<float16*>(to)[index] = Narrow<float16>::from(float(value)); return;
        case DType::bfloat16: static_cast<bfloat16*>(to)[index] = Narrow<bfloat16>::from(float(value)); return;
    }
}

// Calls `use` with every value of a channel, as a double, until it returns false.
template <class Storage, class Use>
SNNFAST_HD void for_each_value(const StatisticsCall& call, i64 c, Use use) {
    const Layout& layout = call.layout;
    const i64 steps = layout.held ? 1 : layout.steps;
    for (i64 first = c * layout.channel_stride; first < layout.neurons();
         first += layout.channels * layout.channel_stride) {
        for (i64 flat = first; flat < first + layout.channel_stride; ++flat) {
            const Storage* const x = static_cast<const Storage*>(call.current) +
                                     flat / layout.inner * layout.current.outer + flat % layout.inner;
            for (i64 step = 0; step < steps; ++step)
                if (!use(double(widen(x[step * layout.current.step])))) return;
        }
    }
}

struct Moments {
    double mean;
    double variance;
};

// A channel's moments from its values, in double: an infinite value's mean is infinite, as torch has it. Slow, one value
// after the other; NaN ends it, so that a diverged network is not slow too.
template <class Storage>
SNNFAST_HD Moments moments_of_values(const StatisticsCall& call, i64 c) {
    double mean = 0, variance = 0;
    for_each_value<Storage>(call, c, [&](double x) {
        mean += x / call.count;
        return mean == mean;
    });
    for_each_value<Storage>(call, c, [&](double x) {
        const double d = x - mean;
        variance += d * (d / call.count);
        return variance == variance;
    });
    return {mean, variance};
}

// The neurons' contributions are in the state's dtype, whose squares overflow where values are near 1e19 and more, and
// infinite values leave no differences: such a channel's moments come from its values.
template <class Storage, class S>
SNNFAST_HD void moments_from_sums(const StatisticsCall& call, i64 c) {
    const i64 channels = call.layout.channels;
    const double steps = call.layout.held ? 1.0 : double(call.layout.steps);
    const double from_pivot = call.sums[c] / (call.count / steps);
    const double found = call.sums[channels + c] / call.count - from_pivot * from_pivot;
    double variance = found < 0 ? 0.0 : found;
    double mean = widen(static_cast<const Storage*>(call.current)[pivot_offset(call.layout, c)]) + from_pivot;
    if (!(found - found == 0 && mean - mean == 0)) {  // infinite or NaN
        const Moments exact = moments_of_values<Storage>(call, c);
        mean = exact.mean;
        variance = exact.variance;
    }
    call.moments[c] = mean;
    call.moments[channels + c] = variance;
    if (call.tracked) {
        static_cast<S*>(call.tracked)[c] = S(mean);
        static_cast<S*>(call.tracked)[channels + c] = S(variance * (call.count / (call.count - 1)));
    }
}

// `Call` has the moments, the parameters and where the tables go: a StatisticsCall or a NormalizationCall.
template <class S, class Call>
SNNFAST_HD void make_tables(const Call& call, i64 channels, i64 c) {
    S* const tables = static_cast<S*>(call.tables);
    const double mean = call.moments[c];
    const double inverse = 1.0 / square_root(call.moments[channels + c] + call.eps);
    const double scale = read_parameter(call.weight, call.parameter_dtype, c, 1.0) * inverse;
    const double bias = read_parameter(call.bias, call.parameter_dtype, c, 0.0);
    const S rounded = S(mean);
    tables[c] = rounded;
    tables[channels + c] = S(scale);
    tables[2 * channels + c] = S(bias - (mean - double(rounded)) * scale);
}

// A StatisticsCall, for one channel.
template <class Storage>
SNNFAST_HD void statistics_step(const StatisticsCall& call, i64 c) {
    moments_from_sums<Storage, State<Storage>>(call, c);
    if (call.tables) make_tables<State<Storage>>(call, call.layout.channels, c);
}

// A NormalizationCall, for one channel. S is the state's dtype.
template <class S>
SNNFAST_HD void normalization_step(const NormalizationCall& call, i64 c) {
    if (call.tables) make_tables<S>(call, call.channels, c);
}

// A NormalizationGradientsCall, for one channel. S is the state's dtype.
template <class S>
SNNFAST_HD void normalization_gradients_step(const NormalizationGradientsCall& call, i64 c) {
    const i64 channels = call.channels;
    const double mean = call.moments[c];
    const double inverse = 1.0 / square_root(call.moments[channels + c] + call.eps);
    const double lost = mean - double(static_cast<const S*>(call.tables)[c]);      // to the rounding of the mean
    const double gradient = call.sums[c];                                          // sum of dL/dI
    const double product = inverse * (call.sums[channels + c] - lost * gradient);  // sum of dL/dI * x_hat
    write_parameter(call.grad_weight, call.parameter_dtype, c, product);
    write_parameter(call.grad_bias, call.parameter_dtype, c, gradient);
    if (call.through_statistics) {
        S* const to = static_cast<S*>(call.through_statistics);
        const double through_variance = inverse * (product / call.count);
        to[c] = S(gradient / call.count - lost * through_variance);
        to[channels + c] = S(through_variance);
    }
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
