// exp, log, tanh, erf and what is made of them, over a float or a vector of floats. The
// polynomials are least-squares fits on Chebyshev nodes, reweighted towards minimax
// (tools/fit_polynomials.py prints them); tests hold each function to a few units in the last place.
#pragma once
#include "types.hpp"
#include "vec.hpp"

namespace rl {

// float64 goes to libm: it is for whole numbers' sake and for checks, not for speed.
RL_INLINE double exp(double x) { return ::exp(x); }
RL_INLINE double log(double x) { return ::log(x); }
RL_INLINE double abs(double x) { return __builtin_fabs(x); }
RL_INLINE double tanh(double x) { return ::tanh(x); }
RL_INLINE double erf(double x) { return ::erf(x); }
RL_INLINE double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }
RL_INLINE double sqrt(double x) { return ::sqrt(x); }
RL_INLINE double gelu(double x) { return 0.5 * x * (1 + ::erf(x * 0.70710678118654752)); }

template <class V> RL_INLINE V horner(V, float c) { return fill<V>(c); }
template <class V, class... C> RL_INLINE V horner(V x, float c, C... rest) {
    return c + x * horner(x, rest...);
}

// exp(x) = 2^n exp(r), |r| <= ln(2)/2 (Cody and Waite's split of ln 2).
template <class V> struct Exponent {
    typename lanes_of<V>::integer n;
    V p;  // exp(r)
};
template <class V> RL_INLINE Exponent<V> split_exp(V x) {
    const V shifted = x * 1.44269504f + 12582912.f;  // 1.5 * 2^23 rounds to whole numbers
    const V n = shifted - 12582912.f;
    const V r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    const V p = 1.f + (r + r * r * horner(r, 5.000000000e-01f, 1.666651964e-01f, 4.166620597e-02f,
                                          8.368882351e-03f, 1.395047875e-03f));
    return {bits(shifted), p};  // the lowest bits of a number of that size are n itself
}
// Scaled in two steps, so that results below the normal range are right too.
template <class V> RL_INLINE V exp(V x) {
    const auto e = split_exp(at_most(at_least(x, -104.f), 89.f));
    const auto n = e.n - 0x4b400000, half = n >> 1;
    return e.p * from_bits((half + 127) << 23) * from_bits((n - half + 127) << 23);
}
// exp(-x) to 2e-7, for x in [-88, 87]: for sums with 1. One product takes n ln 2 off where it is not
// rounded before the difference; the exponent is added to that of exp(r), which is in [0.7, 1.42].
template <class V> RL_INLINE V exp_minus(V x) {
    const V shifted = x * -1.44269504f + 12582912.f, n = shifted - 12582912.f;
#if defined(__FMA__) || defined(__aarch64__)
    const V r = -(n * 0.693147181f + x);
#else
    const V r = -(n * 0.693145752f + x) - n * 1.42860677e-6f;
#endif
    // Two halves at a time: as a chain of products the vectors in flight would all wait.
    const V s = r * r, high = 4.189827666e-02f + r * 8.374639787e-03f;
    const V p = (1.f + r) + s * ((4.999914765e-01f + r * 1.666645706e-01f) + s * high);
    return from_bits(bits(p) + (bits(shifted) << 23));
}

// log(x) = e ln 2 + log(1 + r), with 1 + r in [sqrt(1/2), sqrt(2)).
template <class V> RL_INLINE V log(V x) {
    typedef typename lanes_of<V>::integer I;
    const V tiny = select(x < 1.17549435e-38f, fill<V>(8388608.f), fill<V>(1.f));
    const I i = bits(x * tiny) - 0x3f3504f3;
    const V e = to_float(i >> 23) - select(tiny > 1.f, fill<V>(23.f), fill<V>(0.f));
    const V r = from_bits((i & 0x007fffff) + 0x3f3504f3) - 1.f;
    const V p = horner(r, -4.999998914e-01f, 3.333330841e-01f, -2.500152396e-01f, 2.000300791e-01f,
                       -1.661109535e-01f, 1.416360763e-01f, -1.320942967e-01f, 1.300409523e-01f,
                       -7.820760813e-02f);
    const V y = (r + (r * r * p + e * 1.42860677e-6f)) + e * 0.693145752f;
    const V big = select(x == HUGE_VALF, x, y);
    return select(x > 0.f, big, select(x == 0.f, fill<V>(-HUGE_VALF), fill<V>(NAN)));
}

template <class V> RL_INLINE V abs(V x) { return select(x < 0.f, -x, select(x == 0.f, fill<V>(0.f), x)); }
// a / (1 + exp(-x)), for x >= -88.
template <class V> RL_INLINE V by_sigmoid(V a, V x) {
    return quotient(a, 1.f + exp_minus(at_most(x, 87.f)));
}
RL_INLINE double by_sigmoid(double a, double x) { return a * sigmoid(x); }
template <class V> RL_INLINE V sigmoid(V x) { return by_sigmoid(fill<V>(1.f), at_least(x, -88.f)); }

// x P(x^2) / Q(x^2); from 9 on tanh is 1.
template <class V> RL_INLINE V tanh(V x) {
    const V t = at_most(at_least(x, -9.f), 9.f), u = t * t;
    return quotient(t * horner(u, 1.000000000e+00f, 1.308401525e-01f, 3.103962634e-03f, 1.115437226e-05f,
                      -2.022546575e-08f, 5.278054035e-11f, -8.488958099e-14f),
                    horner(u, 1.f, 4.641734362e-01f, 2.449520491e-02f, 2.546154428e-04f));
}

// x P(x^2) / Q(x^2); from 3.9 on erf is 1 but for 4e-8.
template <class V> RL_INLINE V erf(V x) {
    const V t = at_most(at_least(x, -3.9f), 3.9f), u = t * t;
    return quotient(t * horner(u, 1.128379226e+00f, 1.846901178e-01f, 5.426071957e-02f, 3.829875495e-03f,
                      3.796571109e-04f, 4.698571047e-06f, -1.323324206e-08f),
                    horner(u, 1.f, 4.970108867e-01f, 1.137567163e-01f, 1.542338077e-02f,
                           1.303570229e-03f, 6.323862181e-05f));
}

template <class V> RL_INLINE V relu(V x) { return at_least(x, 0.f); }
template <class V> RL_INLINE V clip(V x, float low, float high) {
    return at_most(at_least(x, low), high);
}
template <class V> RL_INLINE V silu(V x) {
    const V t = at_least(x, -88.f);  // below, the product is 0 but for 5e-37
    return by_sigmoid(t, t);
}
template <class V> RL_INLINE V hard_sigmoid(V x, float alpha, float beta) {
    return clip(x * alpha + beta, 0.f, 1.f);
}
template <class V> RL_INLINE V gelu(V x) { return 0.5f * x * (1.f + erf(x * 0.707106781f)); }
template <class V> RL_INLINE V gelu_tanh(V x) {
    return 0.5f * x * (1.f + tanh(0.797884561f * (x + 0.044715f * x * x * x)));
}
template <class V> RL_INLINE V softplus(V x) {
    return maximum(x, fill<V>(0.f)) + log(1.f + exp(-abs(x)));
}
template <class V> RL_INLINE V elu(V x, float alpha, float scale = 1.f) {
    return select(x > 0.f, x * scale, scale * alpha * (exp(minimum(x, fill<V>(0.f))) - 1.f));
}
template <class V, class A> RL_INLINE V leaky(V x, A alpha) { return select(x < 0.f, alpha * x, x); }
template <class V> RL_INLINE V threshold(V x, float t) { return select(x > t, x, fill<V>(0.f)); }
template <class V> RL_INLINE V sqrt(V x) {
    return each([](float v) { return __builtin_sqrtf(v); }, x);
}

}  // namespace rl
