// Kernels along one axis of [outer][n][inner]: the best place, running sums, the k best.
#pragma once
#include <algorithm>

#include "vec.hpp"
#include "types.hpp"

namespace rl {

// Sorts before: NaN is the highest, as in NumPy.
template <bool HIGH, class T> inline bool before(T a, T b) {
    if (a != a || b != b) return HIGH ? a != a && b == b : a == a && b != b;
    return HIGH ? a > b : a < b;
}

template <bool HIGH, bool LAST, class T>
inline void arg_best(Span part, const T* x, int64_t* y, long n, long inner) {
    for (long u = part.first; u < part.last; ++u) {
        const T* row = x + u / inner * n * inner + u % inner;
        wide<T> best = (wide<T>)row[0];
        long at = 0;
        for (long i = 1; i < n; ++i) {
            const wide<T> v = (wide<T>)row[i * inner];
            const bool better = LAST ? !(HIGH ? v < best : v > best) : (HIGH ? v > best : v < best);
            if (better || (v != v && best == best)) best = v, at = i;
        }
        y[u] = at;
    }
}

// Running sums or products; `exclusive` leaves each element out of its own.
template <class T, class F>
inline void cumulate(Span part, const T* x, T* y, long n, long inner, bool exclusive, bool reverse,
                     double start, F join) {
    for (long u = part.first; u < part.last; ++u) {
        const long base = u / inner * n * inner + u % inner;
        wide<T> sum = (wide<T>)start;
        for (long i = 0; i < n; ++i) {
            const long at = base + (reverse ? n - 1 - i : i) * inner;
            const wide<T> next = (wide<T>)join(sum, (wide<T>)x[at]);
            y[at] = (T)(exclusive ? sum : next);
            sum = next;
        }
    }
}

// The places of the k best of each row, the best first, the lower place first among equals.
template <bool HIGH, class T>
inline void top_k(Span part, const T* x, int64_t* y, char* scratch, long n, long k, long inner) {
    int64_t* const order = (int64_t*)scratch;
    for (long u = part.first; u < part.last; ++u) {
        const T* row = x + u / inner * n * inner + u % inner;
        for (long i = 0; i < n; ++i) order[i] = i;
        std::partial_sort(order, order + k, order + n, [=](int64_t a, int64_t b) {
            const wide<T> v = (wide<T>)row[a * inner], w = (wide<T>)row[b * inner];
            return before<HIGH>(v, w) || (!before<HIGH>(w, v) && a < b);
        });
        int64_t* to = y + u / inner * k * inner + u % inner;
        for (long i = 0; i < k; ++i) to[i * inner] = order[i];
    }
}

// scale * the sum of squares over channels [c - low, c + high].
inline void window_squares(Span part, const float* x, float* y, long channels, long inner, long low,
                           long high, double scale) {
    for (long u = part.first; u < part.last; ++u) {
        const long c = u % channels, first = c < low ? -c : -low;
        const long end = c + high >= channels ? channels - 1 - c : high;
        for (long i = 0; i < inner; ++i) {
            float sum = 0;
            for (long d = first; d <= end; ++d) {
                const float v = x[(u + d) * inner + i];
                sum += v * v;
            }
            y[u * inner + i] = (float)scale * sum;
        }
    }
}

}  // namespace rl
