// Products of whole numbers, exact on every machine: what flows is int16, weights are int8, and two
// neighbours along K are multiplied and added at once into int32. A pair takes the place of a float
// in the kernels of gemm.hpp and conv.hpp: as many bytes, twice as many elements.
#pragma once
#include "vec.hpp"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace rl {

struct __attribute__((may_alias)) pair {  // of what flows
    int16_t low, high;
};
struct __attribute__((may_alias)) pair8 {  // of weights
    int8_t low, high;
};
typedef int16_t vs __attribute__((vector_size(RL_VECTOR_BYTES), may_alias));
typedef int16_t half_vs __attribute__((vector_size(RL_VECTOR_BYTES / 2)));
typedef int8_t half_vb __attribute__((vector_size(RL_VECTOR_BYTES / 2)));

RL_INLINE vs set(pair x) {
    int32_t both;
    memcpy(&both, &x, 4);
    return (vs)(both + vi{});
}
RL_INLINE vs load(const pair8* p) {
#if RL_VECTOR_BYTES == 64 && defined(__AVX512BW__)
    return (vs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
#elif RL_VECTOR_BYTES == 32 && defined(__AVX2__)  // GCC 12 converts the halves and joins them
    return (vs)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
#else
    half_vb x;
    memcpy(&x, p, sizeof x);
    return __builtin_convertvector(x, vs);
#endif
}

// sum + x * y, for int16 of pairs: GCC does not find the instruction by itself.
RL_INLINE vf plus(vf sum, vf x, vf y) { return sum + x * y; }
RL_INLINE vi plus(vi sum, vs x, vs y) {
#if RL_VECTOR_BYTES == 64 && defined(__AVX512VNNI__)
    return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)y);
#elif RL_VECTOR_BYTES == 64 && defined(__AVX512BW__)
    return sum + (vi)_mm512_madd_epi16((__m512i)x, (__m512i)y);
#elif RL_VECTOR_BYTES == 32 && defined(__AVX2__)
    return sum + (vi)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#elif RL_VECTOR_BYTES == 16 && defined(__SSE2__)
    return sum + (vi)_mm_madd_epi16((__m128i)x, (__m128i)y);
#else
    RL_UNROLL for (int i = 0; i < W; ++i)
        sum[i] += (int32_t)x[2 * i] * y[2 * i] + (int32_t)x[2 * i + 1] * y[2 * i + 1];
    return sum;
#endif
}

// What sums are made of, and what the weights are, by what flows.
template <class A> struct product_of {
    typedef vf sum;
    typedef float weight;
};
template <> struct product_of<pair> {
    typedef vi sum;
    typedef pair8 weight;
};
RL_INLINE vf as_float(vf x) { return x; }
RL_INLINE vf as_float(vi x) { return to_float(x); }

// Whole floats as int16.
RL_INLINE void store(int16_t* p, vf x) {
    const half_vs y = __builtin_convertvector(to_int(x), half_vs);
    memcpy(p, &y, sizeof y);
}
RL_INLINE void store_first(int16_t* p, vf x, int n) {
    for (int i = 0; i < n; ++i) p[i] = (int16_t)x[i];
}

// x in steps of `scale`, the nearest whole number from low to high, of two the even one: ONNX's
// QuantizeLinear less its zero point. Numbers are held to the bounds first, so that the sum that
// rounds them is exact.
template <class V> RL_INLINE V steps_of(V x, float scale, float low, float high) {
    return (at_most(at_least(x / scale, low), high) + 12582912.f) - 12582912.f;
}

}  // namespace rl
