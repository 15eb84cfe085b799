// One vector of floats, whatever the machine: GCC's and Clang's vector extension instead of
// intrinsics, so that AVX-512, AVX2, NEON and plain C++ share every kernel. The build defines
// RL_VECTOR_BYTES (64, 32 or 16) from redline/native/isa.py; the portable twin uses 16 bytes
// and no instruction set flags.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef RL_VECTOR_BYTES
#define RL_VECTOR_BYTES 16
#endif
#define RL_INLINE inline __attribute__((always_inline))
#define RL_UNROLL _Pragma("GCC unroll 64")

namespace rl {

constexpr int W = RL_VECTOR_BYTES / 4;  // floats in a vector; also the channel block of NCHWc

typedef float vf __attribute__((vector_size(RL_VECTOR_BYTES), may_alias));
typedef float vf_any __attribute__((vector_size(RL_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(RL_VECTOR_BYTES), may_alias));
typedef uint32_t vu __attribute__((vector_size(RL_VECTOR_BYTES), may_alias));

// What differs between one float and a vector of them; every formula is written once, over V.
template <class V> struct lanes_of;
template <> struct lanes_of<float> {
    typedef int32_t integer;
    static constexpr int count = 1;
};
template <> struct lanes_of<vf> {
    typedef vi integer;
    static constexpr int count = W;
};

RL_INLINE vf load(const float* p) { return (vf)(*(const vf_any*)p); }
RL_INLINE void store(float* p, vf x) { *(vf_any*)p = x; }
RL_INLINE vf set(float x) { return x - vf{}; }
RL_INLINE vf load_first(const float* p, int n) {
    vf x = {};
    for (int i = 0; i < n; ++i) x[i] = p[i];
    return x;
}
RL_INLINE void store_first(float* p, vf x, int n) {
    for (int i = 0; i < n; ++i) p[i] = x[i];
}
template <class V> RL_INLINE V fill(float x);
template <> RL_INLINE float fill<float>(float x) { return x; }
template <> RL_INLINE double fill<double>(float x) { return x; }
template <> RL_INLINE vf fill<vf>(float x) { return set(x); }

RL_INLINE float select(bool m, float a, float b) { return m ? a : b; }
RL_INLINE double select(bool m, double a, double b) { return m ? a : b; }
RL_INLINE vf select(vi m, vf a, vf b) { return m ? a : b; }
RL_INLINE vi bits(vf x) { return (vi)x; }
RL_INLINE vf from_bits(vi x) { return (vf)x; }
RL_INLINE int32_t bits(float x) {
    int32_t y;
    memcpy(&y, &x, 4);
    return y;
}
RL_INLINE float from_bits(int32_t x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
RL_INLINE vi to_int(vf x) { return __builtin_convertvector(x, vi); }
RL_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
RL_INLINE int32_t to_int(float x) { return (int32_t)x; }
RL_INLINE float to_float(int32_t x) { return (float)x; }

// x held to a bound that is no NaN; a NaN stays one. The processor's own instructions return their
// second operand where one is NaN.
RL_INLINE float at_least(float x, float low) { return x < low ? low : x; }
RL_INLINE float at_most(float x, float high) { return x > high ? high : x; }
RL_INLINE double at_least(double x, float low) { return x < low ? low : x; }
RL_INLINE double at_most(double x, float high) { return x > high ? high : x; }
RL_INLINE vf at_least(vf x, float low) {
#if RL_VECTOR_BYTES == 64 && defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)set(low), (__m512)x);
#elif RL_VECTOR_BYTES == 32 && defined(__AVX__)
    return (vf)_mm256_max_ps((__m256)set(low), (__m256)x);
#else
    return select(x < low, set(low), x);
#endif
}
RL_INLINE vf at_most(vf x, float high) {
#if RL_VECTOR_BYTES == 64 && defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)set(high), (__m512)x);
#elif RL_VECTOR_BYTES == 32 && defined(__AVX__)
    return (vf)_mm256_min_ps((__m256)set(high), (__m256)x);
#else
    return select(x > high, set(high), x);
#endif
}

// a / b for 2^-100 < |b| < 2^100, to two units in the last place. On 64 bytes an estimate and one of
// Newton's steps, where a division would hold the unit for ten cycles; on 32 it holds one of two
// units for five, no longer than those products would hold both.
RL_INLINE float quotient(float a, float b) { return a / b; }
RL_INLINE double quotient(double a, double b) { return a / b; }
RL_INLINE vf quotient(vf a, vf b) {
#if RL_VECTOR_BYTES == 64 && defined(__AVX512F__)
    const vf y = (vf)_mm512_rcp14_ps((__m512)b);
    return a * (y + y * (1.f - b * y));
#else
    return a / b;
#endif
}

// A NaN in either operand gives NaN, as in NumPy and ONNX.
template <class V> RL_INLINE V maximum(V a, V b) { return select((a > b) | (a != a), a, b); }
template <class V> RL_INLINE V minimum(V a, V b) { return select((a < b) | (a != a), a, b); }

RL_INLINE float sum(vf x) {
    float total = 0;
    RL_UNROLL for (int half = W / 2; half; half /= 2)
        RL_UNROLL for (int i = 0; i < half; ++i) x[i] += x[i + half];
    total = x[0];
    return total;
}
RL_INLINE float highest(vf x) {
    RL_UNROLL for (int half = W / 2; half; half /= 2)
        RL_UNROLL for (int i = 0; i < half; ++i) x[i] = maximum((float)x[i], (float)x[i + half]);
    return x[0];
}

// Applies a scalar function of libm lane by lane: for functions too rare for a formula of ours.
template <class F> RL_INLINE float each(F f, float x) { return f(x); }
template <class F> RL_INLINE vf each(F f, vf x) {
    vf y;
    for (int i = 0; i < W; ++i) y[i] = f(x[i]);
    return y;
}

// The part of [0, n) that thread t of T takes, in steps of `grain`.
struct Span {
    long first, last;
};
RL_INLINE Span share(long n, int t, int T, long grain = 1) {
    const long units = (n + grain - 1) / grain;
    const long first = units * t / T * grain, last = units * (t + 1) / T * grain;
    return {first < n ? first : n, last < n ? last : n};
}

// The part of [0, n) that lies in some steps of `grain`.
RL_INLINE Span steps(Span taken, long grain, long n) {
    const long last = taken.last * grain;
    return {taken.first * grain, last < n ? last : n};
}

}  // namespace rl
