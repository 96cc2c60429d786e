// The calls as Python makes them, and each as the core's struct of the same fields (calls.h).
#pragma once

#include "calls.h"
#include "record.h"

namespace snnfast {
namespace {

// The records, whose fields snnfast/_core.pyi describes: tensors or None, unless it says otherwise.

struct ChannelCoefficientsRecord : RecordType {
    ChannelCoefficientsRecord() : RecordType("ChannelCoefficients") {}
    Field threshold{*this, "threshold"}, leak{*this, "leak"}, gain{*this, "gain"}, drive{*this, "drive"};
};

struct ForwardRecord : RecordType {
    ForwardRecord() : RecordType("ForwardCall") {}
    Field dtype{*this, "dtype"}, layout{*this, "layout"}, dynamics{*this, "dynamics"},
        coefficients{*this, "coefficients"}, normalization{*this, "normalization"}, residual{*this, "residual"},
        current{*this, "current"}, initial{*this, "initial"}, spikes{*this, "spikes"}, last{*this, "last"},
        potential{*this, "potential"}, checkpoints{*this, "checkpoints"};
};

struct BackwardRecord : RecordType {
    BackwardRecord() : RecordType("BackwardCall") {}
    Field dtype{*this, "dtype"}, layout{*this, "layout"}, dynamics{*this, "dynamics"},
        coefficients{*this, "coefficients"}, surrogate{*this, "surrogate"}, normalization{*this, "normalization"},
        through_statistics{*this, "through_statistics"}, residual{*this, "residual"}, current{*this, "current"},
        initial{*this, "initial"}, checkpoints{*this, "checkpoints"}, grad_spikes{*this, "grad_spikes"},
        grad_last{*this, "grad_last"}, grad_potential{*this, "grad_potential"}, grad_current{*this, "grad_current"},
        grad_residual{*this, "grad_residual"}, grad_initial{*this, "grad_initial"},
        grad_threshold{*this, "grad_threshold"}, grad_tau{*this, "grad_tau"}, sums{*this, "sums"},
        workspace{*this, "workspace"}, deferred{*this, "deferred"};
};

struct GradientThroughRecord : RecordType {
    GradientThroughRecord() : RecordType("GradientThroughCall") {}
    Field dtype{*this, "dtype"}, layout{*this, "layout"}, normalization{*this, "normalization"},
        through_statistics{*this, "through_statistics"}, current{*this, "current"}, gradient{*this, "gradient"};
};

struct ChannelSumRecord : RecordType {
    ChannelSumRecord() : RecordType("ChannelSumCall") {}
    Field dtype{*this, "dtype"}, arrays{*this, "arrays"}, before{*this, "before"}, channels{*this, "channels"},
        after{*this, "after"}, values{*this, "values"}, sums{*this, "sums"}, workspace{*this, "workspace"};
};

struct MomentsRecord : RecordType {
    MomentsRecord() : RecordType("MomentsCall") {}
    Field dtype{*this, "dtype"}, layout{*this, "layout"}, current{*this, "current"}, sums{*this, "sums"},
        workspace{*this, "workspace"};
};

struct StatisticsRecord : RecordType {
    StatisticsRecord() : RecordType("StatisticsCall") {}
    Field dtype{*this, "dtype"}, layout{*this, "layout"}, current{*this, "current"}, count{*this, "count"},
        sums{*this, "sums"}, eps{*this, "eps"}, parameter_dtype{*this, "parameter_dtype"}, weight{*this, "weight"},
        bias{*this, "bias"}, moments{*this, "moments"}, tables{*this, "tables"}, tracked{*this, "tracked"};
};

struct NormalizationRecord : RecordType {
    NormalizationRecord() : RecordType("NormalizationCall") {}
    Field dtype{*this, "dtype"}, channels{*this, "channels"}, eps{*this, "eps"}, moments{*this, "moments"},
        parameter_dtype{*this, "parameter_dtype"}, weight{*this, "weight"}, bias{*this, "bias"},
        tables{*this, "tables"};
};

struct NormalizationGradientsRecord : RecordType {
    NormalizationGradientsRecord() : RecordType("NormalizationGradientsCall") {}
    Field dtype{*this, "dtype"}, channels{*this, "channels"}, eps{*this, "eps"}, count{*this, "count"},
        sums{*this, "sums"}, moments{*this, "moments"}, tables{*this, "tables"},
        through_statistics{*this, "through_statistics"}, parameter_dtype{*this, "parameter_dtype"},
        grad_weight{*this, "grad_weight"}, grad_bias{*this, "grad_bias"};
};

struct PackBitsRecord : RecordType {
    PackBitsRecord() : RecordType("PackBitsCall") {}
    Field dtype{*this, "dtype"}, count{*this, "count"}, spikes{*this, "spikes"}, bits{*this, "bits"};
};

struct UnpackBitsRecord : RecordType {
    UnpackBitsRecord() : RecordType("UnpackBitsCall") {}
    Field dtype{*this, "dtype"}, count{*this, "count"}, bits{*this, "bits"}, spikes{*this, "spikes"};
};

i64 bytes_of_state(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// Part `index` of a tensor whose parts, [parts, length] of the state's dtype, lie one after the other.
void* part(void* first, i64 index, i64 length, DType dtype) {
    return first ? static_cast<char*>(first) + index * length * bytes_of_state(dtype) : nullptr;
}

ChannelCoefficients coefficients(PyObject* given) {
    if (given == Py_None) return {};
    const Record<ChannelCoefficientsRecord> record(given);
    const auto& f = record.type();
    return {record.address(f.threshold), record.address(f.leak), record.address(f.gain), record.address(f.drive)};
}

Normalization normalization(void* tables, DType dtype, i64 channels, void* through_statistics) {
    Normalization n;
    if (!tables) return n;
    n.mean = part(tables, 0, channels, dtype);
    n.scale = part(tables, 1, channels, dtype);
    n.shift = part(tables, 2, channels, dtype);
    n.through_mean = part(through_statistics, 0, channels, dtype);
    n.through_variance = part(through_statistics, 1, channels, dtype);
    return n;
}

template <class Type>
DType dtype_of(const Record<Type>& call, const Field& field) {
    return static_cast<DType>(call.integer(field));
}

// What calls share: the currents as they lie in memory and are normalized, and the neurons that they drive.

template <class Type, class Call>
void read_currents(const Record<Type>& given, void* through_statistics, Call& call) {
    const auto& f = given.type();
    call.dtype = dtype_of(given, f.dtype);
    call.layout = given.template object<Layout>(f.layout);
    call.normalization =
        normalization(given.address(f.normalization), call.dtype, call.layout.channels, through_statistics);
    call.current = given.address(f.current);
}

template <class Type, class Call>
void read_neurons(const Record<Type>& given, Call& call) {
    const auto& f = given.type();
    call.dynamics = given.template object<Dynamics>(f.dynamics);
    call.coefficients = coefficients(given.at(f.coefficients));
    call.normalization.residual = given.address(f.residual);
    call.initial = given.address(f.initial);
}

// Each record as the core's struct of the same fields.

ForwardCall forward_call(const Record<ForwardRecord>& given) {
    const auto& f = given.type();
    ForwardCall call;
    read_currents(given, nullptr, call);
    read_neurons(given, call);
    call.spikes = given.address(f.spikes);
    call.last = given.address(f.last);
    call.potential = given.address(f.potential);
    call.checkpoints = given.address(f.checkpoints);
    return call;
}

BackwardCall backward_call(const Record<BackwardRecord>& given) {
    const auto& f = given.type();
    BackwardCall call;
    read_currents(given, given.address(f.through_statistics), call);
    read_neurons(given, call);
    call.surrogate = given.object<Surrogate>(f.surrogate);
    call.checkpoints = given.address(f.checkpoints);
    call.grad_spikes = given.address(f.grad_spikes);
    call.grad_last = given.address(f.grad_last);
    call.grad_potential = given.address(f.grad_potential);
    call.grad_current = given.address(f.grad_current);
    call.grad_residual = given.address(f.grad_residual);
    call.grad_initial = given.address(f.grad_initial);
    call.grad_threshold = given.address(f.grad_threshold);
    call.grad_tau = given.address(f.grad_tau);
    call.sums = given.address<double>(f.sums);
    call.workspace = given.address(f.workspace);
    call.deferred = given.integer(f.deferred) != 0;
    return call;
}

GradientThroughCall gradient_through_call(const Record<GradientThroughRecord>& given) {
    const auto& f = given.type();
    GradientThroughCall call;
    read_currents(given, given.address(f.through_statistics), call);
    call.gradient = given.address(f.gradient);
    return call;
}

ChannelSumCall channel_sum_call(const Record<ChannelSumRecord>& given) {
    const auto& f = given.type();
    ChannelSumCall call;
    call.dtype = dtype_of(given, f.dtype);
    call.arrays = given.integer(f.arrays);
    call.before = given.integer(f.before);
    call.channels = given.integer(f.channels);
    call.after = given.integer(f.after);
    call.values = given.address(f.values);
    call.sums = given.address<double>(f.sums);
    call.workspace = given.address<double>(f.workspace);
    return call;
}

MomentsCall moments_call(const Record<MomentsRecord>& given) {
    const auto& f = given.type();
    MomentsCall call;
    call.dtype = dtype_of(given, f.dtype);
    call.layout = given.object<Layout>(f.layout);
    call.current = given.address(f.current);
    call.sums = given.address<double>(f.sums);
    call.workspace = given.address(f.workspace);
    return call;
}

StatisticsCall statistics_call(const Record<StatisticsRecord>& given) {
    const auto& f = given.type();
    StatisticsCall call;
    call.dtype = dtype_of(given, f.dtype);
    call.layout = given.object<Layout>(f.layout);
    call.current = given.address(f.current);
    call.count = given.number(f.count);
    call.sums = given.address<double>(f.sums);
    call.eps = given.number(f.eps);
    call.parameter_dtype = dtype_of(given, f.parameter_dtype);
    call.weight = given.address(f.weight);
    call.bias = given.address(f.bias);
    call.moments = given.address<double>(f.moments);
    call.tables = given.address(f.tables);
    call.tracked = given.address(f.tracked);
    return call;
}

NormalizationCall normalization_call(const Record<NormalizationRecord>& given) {
    const auto& f = given.type();
    NormalizationCall call;
    call.dtype = dtype_of(given, f.dtype);
    call.channels = given.integer(f.channels);
    call.eps = given.number(f.eps);
    call.moments = given.address<double>(f.moments);
    call.parameter_dtype = dtype_of(given, f.parameter_dtype);
    call.weight = given.address(f.weight);
    call.bias = given.address(f.bias);
    call.tables = given.address(f.tables);
    return call;
}

NormalizationGradientsCall normalization_gradients_call(const Record<NormalizationGradientsRecord>& given) {
    const auto& f = given.type();
    NormalizationGradientsCall call;
    call.dtype = dtype_of(given, f.dtype);
    call.channels = given.integer(f.channels);
    call.eps = given.number(f.eps);
    call.count = given.number(f.count);
    call.sums = given.address<double>(f.sums);
    call.moments = given.address<double>(f.moments);
    call.tables = given.address(f.tables);
    call.through_statistics = given.address(f.through_statistics);
    call.parameter_dtype = dtype_of(given, f.parameter_dtype);
    call.grad_weight = given.address(f.grad_weight);
    call.grad_bias = given.address(f.grad_bias);
    return call;
}

PackBitsCall pack_bits_call(const Record<PackBitsRecord>& given) {
    const auto& f = given.type();
    return {dtype_of(given, f.dtype), given.integer(f.count), given.address(f.spikes),
            given.address<unsigned char>(f.bits)};
}

UnpackBitsCall unpack_bits_call(const Record<UnpackBitsRecord>& given) {
    const auto& f = given.type();
    return {dtype_of(given, f.dtype), given.integer(f.count), given.address<unsigned char>(f.bits),
            given.address(f.spikes)};
}

}  // namespace
}  // namespace snnfast
