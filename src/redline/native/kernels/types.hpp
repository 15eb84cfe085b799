// The two-byte floats as types that convert to and from float: what is computed with them is
// computed in float and rounded to nearest, ties to even. Also whole numbers' own arithmetic.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>

namespace rl {

struct bfloat {
    uint16_t bits;
    bfloat() = default;
    bfloat(float x) {
        uint32_t u;
        memcpy(&u, &x, 4);
        bits = x != x ? 0x7fc0 : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    operator float() const {
        const uint32_t u = (uint32_t)bits << 16;
        float x;
        memcpy(&x, &u, 4);
        return x;
    }
};

struct half {
    uint16_t bits;
    half() = default;
    half(float x) {
        uint32_t u;
        memcpy(&u, &x, 4);
        const uint32_t sign = u >> 16 & 0x8000;
        u &= 0x7fffffff;
        if (u > 0x7f800000) {
            bits = (uint16_t)(sign | 0x7e00);
        } else if (u >= 0x477ff000) {  // rounds to 65536 or more
            bits = (uint16_t)(sign | 0x7c00);
        } else if (u < 0x38800000) {  // below the normal range: adding 0.5 lines the bits up
            float y;
            memcpy(&y, &u, 4);
            y += 0.5f;
            uint32_t v;
            memcpy(&v, &y, 4);
            bits = (uint16_t)(sign | (v - 0x3f000000));
        } else {
            u += 0xc8000fff + (u >> 13 & 1);
            bits = (uint16_t)(sign | u >> 13);
        }
    }
    operator float() const {
        const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
        uint32_t u = sign | (rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13
                                            : (rest << 13) + 0x38000000);
        float x;
        if (rest < 0x400) x = (sign ? -1.f : 1.f) * (float)rest * 0x1p-24f;
        else memcpy(&x, &u, 4);
        return x;
    }
};

// Sums are kept in this type.
template <class T> struct wide_of { typedef T type; };
template <> struct wide_of<half> { typedef float type; };
template <> struct wide_of<bfloat> { typedef float type; };
template <class T> using wide = typename wide_of<T>::type;

template <class T> constexpr bool whole = std::is_integral<T>::value;

// As C divides, but for a zero divisor and for the one quotient that does not fit.
template <class T> inline T divide(T a, T b) {
    if constexpr (!whole<T>) return a / b;
    else if (b == 0) return 0;
    else if (std::is_signed<T>::value && b == (T)-1) return (T)(0 - (uint64_t)a);
    else return (T)(a / b);
}
// The remainder has the divisor's sign, as in Python.
template <class T> inline T floor_mod(T a, T b) {
    if constexpr (whole<T>) {
        if (b == 0 || (std::is_signed<T>::value && b == (T)-1)) return 0;
        const T r = (T)(a % b);
        return r != 0 && (r < 0) != (b < 0) ? (T)(r + b) : r;
    } else {
        const T r = fmod(a, b);
        return r != 0 && (r < 0) != (b < 0) ? r + b : r;
    }
}
// The remainder has the dividend's sign, as in C.
template <class T> inline T trunc_mod(T a, T b) {
    if constexpr (whole<T>)
        return b == 0 || (std::is_signed<T>::value && b == (T)-1) ? (T)0 : (T)(a % b);
    else return fmod(a, b);
}
template <class T, class P> inline T power(T x, P p) {
    if constexpr (whole<T> && whole<P>) {
        if (p < 0) return x == 1 ? (T)1 : (T)0;
        uint64_t result = 1, factor = (uint64_t)x;
        for (uint64_t n = (uint64_t)p; n; n >>= 1, factor *= factor)
            if (n & 1) result *= factor;
        return (T)result;
    } else if constexpr (std::is_same<T, float>::value && !std::is_same<P, double>::value) {
        return powf(x, (float)p);
    } else {
        return (T)pow((double)x, (double)p);
    }
}
template <class T> inline T larger(T a, T b) { return a > b || a != a ? a : b; }
template <class T> inline T smaller(T a, T b) { return a < b || a != a ? a : b; }
template <class T> inline T sign_of(T x) { return x > 0 ? (T)1 : x < 0 ? (T)-1 : x; }
template <class T> inline T from_top(T x) { return x - x == 0 ? x : (T)0; }
template <class T> inline T shift_left(T x, T n) {
    return (uint64_t)n >= 8 * sizeof(T) ? (T)0 : (T)((uint64_t)x << n);
}
template <class T> inline T shift_right(T x, T n) {
    if ((uint64_t)n >= 8 * sizeof(T)) return x < 0 ? (T)-1 : (T)0;
    return (T)(x >> n);
}
template <class To, class From> inline To same_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
// x / scale to the nearest whole number, ties to even, plus the zero point, cut off at T's ends.
template <class T> inline T quantized(float x, int64_t zero) {
    const double y = rint((double)x) + (double)zero;
    const double low = std::is_signed<T>::value ? -(double)(1ull << (8 * sizeof(T) - 1)) : 0;
    const double high = low + (double)((1ull << (8 * sizeof(T) - 1)) * 2.0 - 1);
    return (T)(y < low ? low : y > high ? high : y == y ? y : 0);
}

}  // namespace rl
