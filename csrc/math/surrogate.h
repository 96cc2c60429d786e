// Surrogate derivatives f(d), d = h - threshold (MATH.md section 2; the paper's equations 8 and 9).
//
// V is a number or a SIMD vector of numbers of type S. Every shape is a height beta and a sharpness gamma.
#pragma once

#include "calls.h"

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

// exp(r) for |r| <= ln 2 / 2 as a polynomial, its coefficients from the highest down: those of least relative error
// (Remez), 7.5e-8 for float and 3e-18 for double.
template <class S>
struct Exponentiation;
template <>
struct Exponentiation<float> {
    static constexpr float underflow = 87.0f;
    static constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23
    static constexpr int mantissa_bits = 23;
    static constexpr unsigned one = 0x3f800000u;

    // r = -a - n ln 2; what one constant loses grows with a as the result vanishes.
    template <class V>
    SNNFAST_HD static V remainder(V a, V n) {
        return -a - n * 0.6931471805599453f;
    }
    template <class V>
    SNNFAST_HD static V power(V r) {
        const V p = ((r * 0.0082976551303f + 0.0419153824494f) * r + 0.1666757473021f) * r + 0.4999889484730f;
        return (p * r + 0.9999996919905f) * r + 1.0000000716550f;
    }
};
template <>
struct Exponentiation<double> {
    static constexpr double underflow = 708.0;
    static constexpr double round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr int mantissa_bits = 52;
    static constexpr unsigned long long one = 0x3ff0000000000000ull;

    template <class V>
    SNNFAST_HD static V remainder(V a, V n) {  // ln 2 in two parts, the first exact times n
        return (-a - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
    }
    template <class V>
    SNNFAST_HD static V power(V r) {
        V p = r * 2.4994304774777309001e-8 + 2.763229342197945424e-7;
        p = p * r + 2.7557622532027481196e-6;
        p = p * r + 2.4801486521044677685e-5;
        p = p * r + 1.9841269432676902862e-4;
        p = p * r + 1.3888888951224343123e-3;
        p = p * r + 8.3333333335592730561e-3;
        p = p * r + 4.1666666666492765976e-2;
        p = p * r + 1.666666666666616866e-1;
        p = p * r + 5.0000000000000176858e-1;
        p = p * r + 1.0;
        return p * r + 1.0;
    }
};

template <class V>
SNNFAST_HD V magnitude(V d) {
    return bits_as<V>(bits_as<Bits<V>>(d) & (~Bits<V>{} >> 1));
}
#if defined(__CUDA_ARCH__)  // where it costs nothing
template <>
SNNFAST_HD float magnitude<float>(float d) {
    return fabsf(d);
}
#endif

// exp(-a) for a >= 0, accurate to a few units in the last place, 0 below the normal numbers, NaN for NaN. Our own,
// because compilers do not vectorise std::exp, and because the same bits on every instruction set are worth having.
template <class V>
SNNFAST_HD V exp_of_minus(V a) {
    using S = Scalar<V>;
    using E = Exponentiation<S>;
    // 2^n * exp(r) with n = round(-a / ln 2): adding the constant leaves n in the low bits of the sum.
    const V shifted = a * S(-1.4426950408889634) + E::round_to_integer;
    const V n = shifted - E::round_to_integer;
    const V power_of_2 = bits_as<V>((bits_as<Bits<V>>(shifted) << E::mantissa_bits) + E::one);
    return a > E::underflow ? V{} : E::power(E::remainder(a, n)) * power_of_2;
}

struct FastSigmoid {
    template <class V, class S>
    SNNFAST_HD static V derivative(V d, S gamma, S beta) {
        const V u = multiply_add(gamma, magnitude(d), S(1));
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
        return approximate_quotient(V{} + beta, V(multiply_add(u, u, S(1))));
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

// The type that stands for a shape.
template <Shape>
struct SurrogateOf;
template <>
struct SurrogateOf<Shape::fast_sigmoid> {
    using type = FastSigmoid;
};
template <>
struct SurrogateOf<Shape::triangle> {
    using type = Triangle;
};
template <>
struct SurrogateOf<Shape::exponential> {
    using type = Exponential;
};
template <>
struct SurrogateOf<Shape::rectangle> {
    using type = Rectangle;
};
template <>
struct SurrogateOf<Shape::arctangent> {
    using type = Arctangent;
};
template <>
struct SurrogateOf<Shape::sigmoid> {
    using type = Sigmoid;
};
template <>
struct SurrogateOf<Shape::gaussian> {
    using type = Gaussian;
};

}  // namespace SNNFAST_TARGET
}  // namespace snnfast
