// exp, log, tanh, erf and what is made of them, over a float or a vector of floats. The
// polynomials are least-squares fits on Chebyshev nodes, reweighted towards minimax
// (tools/fit_polynomials.py prints them); tests hold each function to a few units in the last place.
#pragma once
#include "vec.hpp"

namespace rl {

template <class V> RL_INLINE V horner(V, float c) { return fill<V>(c); }
template <class V, class... C> RL_INLINE V horner(V x, float c, C... rest) {
    return c + x * horner(x, rest...);
}

// exp(x) = 2^n exp(r), |r| <= ln(2)/2 (Cody and Waite's split of ln 2). Scaled in two steps, so
// that results below the normal range are right too.
template <class V> RL_INLINE V exp(V x) {
    typedef typename lanes_of<V>::integer I;
    const V clipped = minimum(maximum(x, fill<V>(-104.f)), fill<V>(89.f));
    const V shifted = clipped * 1.44269504f + 12582912.f;  // 1.5 * 2^23 rounds to whole numbers
    const V n = shifted - 12582912.f;
    const V r = (clipped - n * 0.693145752f) - n * 1.42860677e-6f;
    const V p = 1.f + (r + r * r * horner(r, 5.000000068e-01f, 1.666666587e-01f, 4.166629452e-02f,
                                          8.333497229e-03f, 1.394469117e-03f, 1.979033187e-04f));
    const I whole = to_int(select(n == n, n, fill<V>(0.f)));
    const I half = whole >> 1;
    return p * from_bits((half + 127) << 23) * from_bits((whole - half + 127) << 23);
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
template <class V> RL_INLINE V sigmoid(V x) { return 1.f / (1.f + exp(-x)); }

template <class V> RL_INLINE V tanh(V x) {
    const V u = x * x;
    const V near = x * horner(u, 9.999999958e-01f, -3.333325545e-01f, 1.333099678e-01f,
                              -5.370983193e-02f, 2.055280344e-02f, -5.615586745e-03f);
    const V a = abs(x);
    const V far = 1.f - 2.f / (exp(a + a) + 1.f);
    return select(u < 0.39f, near, select(x < 0.f, -far, far));
}

// Near 0 an odd polynomial; beyond 0.92, 1 - exp(P(|x|)) with P fitted to log(erfc(x)).
template <class V> RL_INLINE V erf(V x) {
    const V a = minimum(abs(x), fill<V>(4.f)), u = x * x;
    const V near = x * horner(u, 1.128379167e+00f, -3.761263418e-01f, 1.128370155e-01f,
                              -2.685969812e-02f, 5.201705613e-03f, -8.149685528e-04f,
                              8.397279930e-05f);
    const V far = 1.f - exp(horner(a, 1.604027977e-04f, -1.129434103e+00f, -6.335434940e-01f,
                                   -1.080119159e-01f, 2.489517480e-02f, -4.053429730e-03f,
                                   3.966847424e-04f, -1.430733928e-05f, -5.221901585e-07f));
    return select(u < 0.8464f, near, select(x < 0.f, -far, far));
}

template <class V> RL_INLINE V relu(V x) { return maximum(x, fill<V>(0.f)); }
template <class V> RL_INLINE V clip(V x, float low, float high) {
    return minimum(maximum(x, fill<V>(low)), fill<V>(high));
}
template <class V> RL_INLINE V silu(V x) { return x / (1.f + exp(-x)); }
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
