// What a call of the core is made of. Plain data only: the CPU code, the CUDA launch code and the kernels themselves
// (as kernel arguments) all read these structs. The core knows no torch; pointers are borrowed for the call.
//
// A tensor with time is read as [outer, steps, inner]: element (o, t, i) lies at
// o * outer_stride + t * step_stride + i. A tensor without time is dense: neuron (o, i) lies at o * inner + i, its flat index.
#pragma once

#include "math/platform.h"

namespace snnfast {

// Steps between two kept potentials. The backward pass rebuilds blocks of this many steps, so a call with steps <= 16
// keeps nothing but its input, and a longer one keeps 1/16 of a tensor more.
constexpr int checkpoint_interval = 16;

enum class DType : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

// MATH.md section 2, in the order of its table.
enum class Shape : int { fast_sigmoid = 0, triangle, exponential, rectangle, arctangent, sigmoid, gaussian };
constexpr int shapes = 7;

struct Strides {
    i64 outer = 0;
    i64 step = 0;
};

struct Layout {
    i64 outer = 1;
    i64 steps = 1;
    i64 inner = 1;
    i64 channels = 1;            // length of what is given per channel
    i64 channel_stride = 1;      // channel of a neuron = (flat / channel_stride) % channels
    bool held = false;           // one current for all steps: `current` has step stride 0, `grad_current` no time axis
    bool residual_held = false;  // likewise of the residual and its gradient; only where the current is held
    Strides current;
    Strides residual;
    Strides spikes;  // also of the recorded potential and, unless held, of the gradients that are written
    Strides grad_spikes;
    Strides grad_potential;
    Strides grad_current;  // also of grad_residual, unless residual_held

    SNNFAST_HD i64 neurons() const { return outer * inner; }
};

// h = leak * v + gain * x + drive; a spike where h > threshold (or >=); MATH.md section 1.
struct Dynamics {
    double leak = 1.0;
    double gain = 1.0;
    double drive = 0.0;
    double threshold = 1.0;
    double reset_value = 0.0;
    bool leaky = false;     // false: leak = gain = 1 and drive = 0, and the factors are left out
    bool soft = false;      // v = h - threshold instead of v = reset_value
    bool attached = false;  // the gradient flows through the reset
    bool fire_on_equal = false;
    bool delay = false;         // a spike is emitted one step after the crossing
    bool input_decays = false;  // only the gradient of tau asks
    bool late = false;          // soft: v = h, and the next h is less by the threshold; not attached
};

// Per-channel values in the state's dtype; a null pointer means the number in Dynamics.
struct ChannelCoefficients {
    const void* threshold = nullptr;
    const void* leak = nullptr;
    const void* gain = nullptr;
    const void* drive = nullptr;
};

// Batch normalization of the currents (MATH.md section 4): what the neuron integrates is
// (x - mean) * scale + shift [+ residual]. Tables of `channels` values in the state's dtype, made in math/normalization.h.
struct Normalization {
    const void* mean = nullptr;  // null: the currents are taken as they are
    const void* scale = nullptr;
    const void* shift = nullptr;
    // Backward, with a batch's own statistics: what the gradient loses through them. Null with given statistics.
    const void* through_mean = nullptr;
    const void* through_variance = nullptr;
    const void* residual = nullptr;  // [outer, steps, inner] storage, or [neurons] where residual_held; null: none
};

struct Surrogate {
    Shape shape = Shape::fast_sigmoid;
    double gamma = 10.0;
    double beta = 1.0;
};

// State arrays are float32, or float64 where the storage is float64. Null outputs are not wanted.
struct ForwardCall {
    DType dtype = DType::float32;
    Layout layout;
    Dynamics dynamics;
    ChannelCoefficients coefficients;
    Normalization normalization;
    const void* current = nullptr;  // [outer, steps, inner] storage
    const void* initial = nullptr;  // [neurons] state; null: the rest value
    void* spikes = nullptr;         // [outer, steps, inner] storage
    void* last = nullptr;           // [neurons] state
    void* potential = nullptr;      // [outer, steps, inner] state
    void* checkpoints = nullptr;    // [(steps - 1) / checkpoint_interval, neurons] state
};

struct BackwardCall {
    DType dtype = DType::float32;
    Layout layout;
    Dynamics dynamics;
    ChannelCoefficients coefficients;
    Normalization normalization;
    Surrogate surrogate;
    const void* current = nullptr;         // [outer, steps, inner] storage
    const void* initial = nullptr;         // [neurons] state; null: the rest value
    const void* checkpoints = nullptr;     // as the forward pass wrote them
    const void* grad_spikes = nullptr;     // [outer, steps, inner] storage; null: zero
    const void* grad_last = nullptr;       // [neurons] state; null: zero
    const void* grad_potential = nullptr;  // [outer, steps, inner] state; null: zero
    void* grad_current = nullptr;          // [outer, steps, inner] storage, or [neurons] when held
    bool deferred = false;                 // grad_current is to be dL/dI, of which gradient_through makes dL/dx
    void* grad_residual = nullptr;         // [outer, steps, inner] storage, or [neurons] where residual_held
    void* grad_initial = nullptr;          // [neurons] state
    void* grad_threshold = nullptr;        // [neurons] state: each neuron's sum over time
    void* grad_tau = nullptr;              // [neurons] state: sum over time of delta * (v - rest - [input decays] x)
    double* sums = nullptr;     // [2, channels]: of dL/dI, I the normalized current, and of dL/dI * (x - mean)
    void* workspace = nullptr;  // [sums_workspace(...)] bytes, where sums are wanted
};

// After a deferred backward pass and its sums: from dL/dI, I the normalized current, to dL/dx, in place. Storage is the
// state's, so that nothing was rounded in between; currents are not held.
struct GradientThroughCall {
    DType dtype = DType::float32;
    Layout layout;
    Normalization normalization;
    const void* current = nullptr;  // [outer, steps, inner] storage
    void* gradient = nullptr;       // [outer, steps, inner] storage, as grad_current lies
};

// sums[a, c] = sum of values[a, p, c, q] over p and q, in double and in an order that depends on nothing but the sizes.
struct ChannelSumCall {
    DType dtype = DType::float32;  // of values: float32 or float64
    i64 arrays = 1;
    i64 before = 1;
    i64 channels = 1;
    i64 after = 1;
    const void* values = nullptr;
    double* sums = nullptr;       // [arrays, channels]
    double* workspace = nullptr;  // [channel_sum_workspace(...)]
};

// The sums per channel of what every neuron contributes to its channel's moments (math/normalization.h).
struct MomentsCall {
    DType dtype = DType::float32;
    Layout layout;
    const void* current = nullptr;  // [outer, steps, inner] storage
    double* sums = nullptr;         // [2, channels]
    void* workspace = nullptr;      // [sums_workspace(...)] bytes
};

// The per-channel arithmetic between the passes, in double. Null is not given, or not wanted.

// Before the forward pass, with the batch's own statistics: from the neurons' contributions to moments and tables.
struct StatisticsCall {
    DType dtype = DType::float32;            // of the current; tables and tracked have its state's dtype
    DType parameter_dtype = DType::float32;  // of weight and bias
    Layout layout;                           // channels, and the current's
    const void* current = nullptr;           // [outer, steps, inner] storage
    double eps = 0.0;
    double count = 1.0;            // values per channel
    const double* sums = nullptr;  // [2, channels]: of what the neurons contribute
    const void* weight = nullptr;  // [channels]
    const void* bias = nullptr;    // [channels]
    double* moments = nullptr;     // [2, channels]: mean, biased variance
    void* tables = nullptr;        // [3, channels] state: mean, scale, shift
    void* tracked = nullptr;       // [2, channels] state: mean, unbiased variance
};

// Before the forward pass, with given statistics: from moments to tables.
struct NormalizationCall {
    DType dtype = DType::float32;            // of the current; tables have its state's dtype
    DType parameter_dtype = DType::float32;  // of weight and bias
    i64 channels = 1;
    double eps = 0.0;
    const double* moments = nullptr;  // [2, channels]: mean, biased variance
    const void* weight = nullptr;     // [channels]
    const void* bias = nullptr;       // [channels]
    void* tables = nullptr;           // [3, channels] state: mean, scale, shift
};

// After the backward pass's sums over time: from sums of gradients to the parameters' gradients, and to the tables of the
// gradient that passes through a batch's own statistics.
struct NormalizationGradientsCall {
    DType dtype = DType::float32;            // of the current; tables have its state's dtype
    DType parameter_dtype = DType::float32;  // of the gradients of weight and bias
    i64 channels = 1;
    double eps = 0.0;
    double count = 1.0;                  // values per channel
    const double* sums = nullptr;        // [2, channels]: of dL/dI, and of dL/dI * (x - mean)
    const double* moments = nullptr;     // [2, channels]: mean, biased variance
    const void* tables = nullptr;        // [3, channels] state: mean, scale, shift
    void* through_statistics = nullptr;  // [2, channels] state: through_mean, through_variance
    void* grad_weight = nullptr;         // [channels]
    void* grad_bias = nullptr;           // [channels]
};

// Spikes as bits, one per spike (math/pack_bits.h).
struct PackBitsCall {
    DType dtype = DType::float32;  // of the spikes
    i64 count = 0;                 // of the spikes
    const void* spikes = nullptr;
    unsigned char* bits = nullptr;  // [(count + 7) / 8]
};

struct UnpackBitsCall {
    DType dtype = DType::float32;  // of the spikes
    i64 count = 0;
    const unsigned char* bits = nullptr;  // [(count + 7) / 8]
    void* spikes = nullptr;               // zeros and ones
};

namespace cpu {
void forward(const ForwardCall& call, int threads);
void backward(const BackwardCall& call, int threads);
void channel_sum(const ChannelSumCall& call, int threads);
i64 sums_workspace(DType dtype, const Layout& layout);  // bytes for the sums of a MomentsCall or a BackwardCall
void moments(const MomentsCall& call, int threads);
void gradient_through(const GradientThroughCall& call, int threads);
void statistics(const StatisticsCall& call, int threads);
void normalization(const NormalizationCall& call, int threads);
void normalization_gradients(const NormalizationGradientsCall& call, int threads);
void pack_bits(const PackBitsCall& call, int threads);
void unpack_bits(const UnpackBitsCall& call, int threads);
const char* instruction_set();               // the one in use
bool use_instruction_set(const char* name);  // false: unknown, or this processor lacks it
i64 streaming_threshold();                   // bytes of an output from which it is written past the caches
void use_streaming_threshold(i64 bytes);     // another number of them, for tests
}  // namespace cpu

namespace cuda {
// Launches on `stream` of `device`; throws std::runtime_error with CUDA's message when a launch fails.
void forward(const ForwardCall& call, int device, void* stream);
void backward(const BackwardCall& call, int device, void* stream);
void channel_sum(const ChannelSumCall& call, int device, void* stream);
i64 channel_sum_workspace(i64 arrays, i64 before, i64 channels, i64 after);
i64 sums_workspace(DType dtype, const Layout& layout);
void moments(const MomentsCall& call, int device, void* stream);
void statistics(const StatisticsCall& call, int device, void* stream);
void normalization(const NormalizationCall& call, int device, void* stream);
void normalization_gradients(const NormalizationGradientsCall& call, int device, void* stream);
void pack_bits(const PackBitsCall& call, int device, void* stream);
void unpack_bits(const UnpackBitsCall& call, int device, void* stream);
bool compiled();              // whether the CUDA kernels are in this build
const char* toolkit();        // the toolkit's version, "13.0"
const char* architectures();  // as CMake names them, "80-real;…;120"
}  // namespace cuda

}  // namespace snnfast
