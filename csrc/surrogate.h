// Surrogate derivatives f(d), d = h - threshold (MATH.md section 2; the paper's equations 8 and 9).
//
// V is a number or a SIMD vector of numbers of type S. Every shape is a height beta and a sharpness gamma.
#pragma once

#include "api.h"

namespace snnfast {
inline namespace SNNFAST_TARGET {

template <class V>
struct LanesOf;  // vec.h specialises it for SIMD vectors
template <>
struct LanesOf<float> {
    using Scalar = float;
    using Bits = unsigned;
};
template <>
struct LanesOf<double> {
    using Scalar = double;
    using Bits = unsigned long long;
};
template <class V>
using Scalar = typename LanesOf<V>::Scalar;
template <class V>
using Bits = typename LanesOf<V>::Bits;

template <class S>
struct ExponentialConstants;
template <>
struct ExponentialConstants<float> {
    static constexpr float underflow = 87.0f;
    static constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23
    static constexpr float ln2_high = 0.693359375f;
    static constexpr float ln2_low = -2.12194440e-4f;
    static constexpr int terms = 7;
    static constexpr int mantissa_bits = 23;
    static constexpr unsigned one = 0x3f800000u;
};
template <>
struct ExponentialConstants<double> {
    static constexpr double underflow = 708.0;
    static constexpr double round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double ln2_high = 6.93145751953125e-1;
    static constexpr double ln2_low = 1.42860682030941723212e-6;
    static constexpr int terms = 13;
    static constexpr int mantissa_bits = 52;
    static constexpr unsigned long long one = 0x3ff0000000000000ull;
};

template <class V>
SNNFAST_HD V magnitude(V d) {
    return bits_as<V>(bits_as<Bits<V>>(d) & (~Bits<V>{} >> 1));
}

// exp(-a) for a >= 0, accurate to a few units in the last place, 0 below the normal numbers, NaN for NaN. Our own,
// because compilers do not vectorise std::exp, and because the same bits on every instruction set are worth having.
template <class V>
SNNFAST_HD V exp_of_minus(V a) {
    using S = Scalar<V>;
    using C = ExponentialConstants<S>;
    // 2^n * exp(r) with n = round(-a / ln 2): adding the constant leaves n in the low bits of the sum.
    const V shifted = a * S(-1.4426950408889634) + C::round_to_integer;
    const V n = shifted - C::round_to_integer;
    const V r = (-a - n * C::ln2_high) - n * C::ln2_low;
    V sum = V{} + S(1);
    for (int k = C::terms; k >= 1; --k) sum = sum * r * S(1.0 / k) + S(1);
    const V power = bits_as<V>((bits_as<Bits<V>>(shifted) << C::mantissa_bits) + C::one);
    return a > C::underflow ? V{} : sum * power;
}

struct FastSigmoid {
    template <class V, class S>
    SNNFAST_HD static V derivative(V d, S gamma, S beta) {
        const V u = S(1) + gamma * magnitude(d);
        return approximate_quotient(V{} + beta, V(u * u));
    }
};

struct Triangle {
    template <class V, class S>
    SNNFAST_HD static V derivative(V d, S gamma, S beta) {
        const V u = S(1) - gamma * magnitude(d);
        return u < V{} ? V{} : V(beta * u);
    }
};

struct Exponential {
    template <class V, class S>
    SNNFAST_HD static V derivative(V d, S gamma, S beta) {
        return beta * exp_of_minus(V(gamma * magnitude(d)));
    }
};

struct Rectangle {
    template <class V, class S>
    SNNFAST_HD static V derivative(V d, S gamma, S beta) {
        const V u = gamma * magnitude(d);
        return u <= V{} + S(1) ? V{} + beta : V{};
    }
};

struct Arctangent {
    template <class V, class S>
    SNNFAST_HD static V derivative(V d, S gamma, S beta) {
        const V u = gamma * d;
        return approximate_quotient(V{} + beta, V(S(1) + u * u));
    }
};

struct Sigmoid {
    template <class V, class S>
    SNNFAST_HD static V derivative(V d, S gamma, S beta) {
        const V e = exp_of_minus(V(gamma * magnitude(d)));
        const V u = S(1) + e;
        return approximate_quotient(V(beta * e), V(u * u));
    }
};

struct Gaussian {
    template <class V, class S>
    SNNFAST_HD static V derivative(V d, S gamma, S beta) {
        const V u = gamma * d;
        return beta * exp_of_minus(V(u * u));
    }
};

// Calls `use` with the type that stands for a shape known at run time.
template <class Use>
inline void with_shape(Shape shape, Use use) {
    switch (shape) {
        case Shape::fast_sigmoid: return use(FastSigmoid{});
        case Shape::triangle: return use(Triangle{});
        case Shape::exponential: return use(Exponential{});
        case Shape::rectangle: return use(Rectangle{});
        case Shape::arctangent: return use(Arctangent{});
        case Shape::sigmoid: return use(Sigmoid{});
        case Shape::gaussian: return use(Gaussian{});
    }
}

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
