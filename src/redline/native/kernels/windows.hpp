// Sliding windows over up to three axes, any type, weights known or not: simple loops with the
// last axis innermost. What is common in two axes and float32 has fast kernels in conv.hpp.
#pragma once
#include "types.hpp"
#include "vec.hpp"

namespace rl {

template <class T>
inline void product(Span part, const T* a, const T* b, T* y, long m, long n, long k) {
    for (long u = part.first; u < part.last; ++u) {
        const T* row = a + u * k;
        const T* from = b + u / m * k * n;
        T* to = y + u * n;
        for (long j = 0; j < n; ++j) to[j] = 0;
        for (long i = 0; i < k; ++i)
            for (long j = 0; j < n; ++j) to[j] = (T)(to[j] + row[i] * from[i * n + j]);
    }
}

// The outputs o in [first, last) whose input o * stride + offset lies in [0, n).
struct Reach {
    long first, last;
};
RL_INLINE Reach reach(long offset, long stride, long n, long outputs) {
    long first = offset >= 0 ? 0 : (-offset + stride - 1) / stride;
    long last = n - offset <= 0 ? 0 : (n - offset + stride - 1) / stride;
    last = last < outputs ? last : outputs;
    return {first, last < first ? first : last};
}

// Taps of a window: f(input offset, weight offset, output offset, count, input stride) for every
// run along the last axis.
template <class F>
RL_INLINE void runs(const long* in, const long* out, const long* kernel, const long* strides,
                    const long* dilations, const long* pads, F f) {
    for (long a = 0; a < kernel[0]; ++a)
        for (long b = 0; b < kernel[1]; ++b)
            for (long c = 0; c < kernel[2]; ++c) {
                const long o0 = a * dilations[0] - pads[0], o1 = b * dilations[1] - pads[1];
                const long o2 = c * dilations[2] - pads[2];
                const Reach r0 = reach(o0, strides[0], in[0], out[0]);
                const Reach r1 = reach(o1, strides[1], in[1], out[1]);
                const Reach r2 = reach(o2, strides[2], in[2], out[2]);
                if (r2.last == r2.first) continue;
                const long tap = (a * kernel[1] + b) * kernel[2] + c;
                for (long d = r0.first; d < r0.last; ++d)
                    for (long h = r1.first; h < r1.last; ++h) {
                        const long row = (d * strides[0] + o0) * in[1] + h * strides[1] + o1;
                        f(row * in[2] + r2.first * strides[2] + o2, tap,
                          (d * out[1] + h) * out[2] + r2.first, r2.last - r2.first, strides[2]);
                    }
            }
}

RL_INLINE long volume(const long* n) { return n[0] * n[1] * n[2]; }

template <class T>
inline void convolve(Span part, const T* x, const T* w, T* y, long channels, long outputs,
                     long groups, const long* in, const long* out, const long* kernel,
                     const long* strides, const long* dilations, const long* pads) {
    const long per = channels / groups, plane = volume(in), size = volume(out);
    for (long u = part.first; u < part.last; ++u) {
        const long b = u / outputs, o = u % outputs, g = o / (outputs / groups);
        T* to = y + u * size;
        for (long i = 0; i < size; ++i) to[i] = 0;
        for (long c = 0; c < per; ++c) {
            const T* from = x + (b * channels + g * per + c) * plane;
            const T* taps = w + (o * per + c) * volume(kernel);
            runs(in, out, kernel, strides, dilations, pads,
                 [&](long source, long tap, long target, long count, long stride) {
                     const T k = taps[tap];
                     for (long i = 0; i < count; ++i) to[target + i] += k * from[source + i * stride];
                 });
        }
    }
}

// The other way round: each input adds to the outputs that its window covers.
template <class T>
inline void spread(Span part, const T* x, const T* w, T* y, long channels, long outputs,
                   long groups, const long* in, const long* out, const long* kernel,
                   const long* strides, const long* dilations, const long* pads) {
    const long per = channels / groups, each = outputs / groups;
    for (long u = part.first; u < part.last; ++u) {
        const long b = u / outputs, o = u % outputs, g = o / each;
        T* to = y + u * volume(out);
        for (long i = 0; i < volume(out); ++i) to[i] = 0;
        for (long c = 0; c < per; ++c) {
            const T* from = x + (b * channels + g * per + c) * volume(in);
            const T* taps = w + ((g * per + c) * each + o % each) * volume(kernel);
            runs(out, in, kernel, strides, dilations, pads,
                 [&](long target, long tap, long source, long count, long stride) {
                     const T k = taps[tap];
                     for (long i = 0; i < count; ++i) to[target + i * stride] += k * from[source + i];
                 });
        }
    }
}

// Columns [channels * taps][windows] added up where they came from; one channel a unit. `in` is how
// many windows each axis has.
template <class T>
inline void gathered(Span part, const T* x, T* y, const long* in, const long* out,
                     const long* kernel, const long* strides, const long* dilations,
                     const long* pads) {
    for (long u = part.first; u < part.last; ++u) {
        T* to = y + u * volume(out);
        for (long i = 0; i < volume(out); ++i) to[i] = 0;
        const T* from = x + u * volume(kernel) * volume(in);
        runs(out, in, kernel, strides, dilations, pads,
             [&](long target, long tap, long source, long count, long stride) {
                 const T* column = from + tap * volume(in) + source;
                 for (long i = 0; i < count; ++i) to[target + i * stride] += column[i];
             });
    }
}

// f(output, places of its window inside the image), places as offsets in the plane.
template <class F>
RL_INLINE void places(const long* in, const long* out, const long* kernel, const long* strides,
                      const long* dilations, const long* pads, long o, F f) {
    const long w = o % out[2], h = o / out[2] % out[1], d = o / out[2] / out[1];
    (void)out;
    for (long a = 0; a < kernel[0]; ++a) {
        const long i = d * strides[0] - pads[0] + a * dilations[0];
        for (long b = 0; b < kernel[1]; ++b) {
            const long j = h * strides[1] - pads[1] + b * dilations[1];
            for (long c = 0; c < kernel[2]; ++c) {
                const long k = w * strides[2] - pads[2] + c * dilations[2];
                f(i, j, k, i >= 0 && j >= 0 && k >= 0 && i < in[0] && j < in[1] && k < in[2]);
            }
        }
    }
}

template <class T>
inline void max_pool(Span part, const T* x, T* y, const long* in, const long* out,
                     const long* kernel, const long* strides, const long* dilations,
                     const long* pads, const long*, long) {
    for (long u = part.first; u < part.last; ++u)
        for (long o = 0; o < volume(out); ++o) {
            const T* from = x + u * volume(in);
            T best = 0;
            bool any = false;
            places(in, out, kernel, strides, dilations, pads, o,
                   [&](long i, long j, long k, bool inside) {
                       if (!inside) return;
                       const T v = from[(i * in[1] + j) * in[2] + k];
                       best = any ? larger(best, v) : v;
                       any = true;
                   });
            y[u * volume(out) + o] = any || whole<T> ? best : (T)-HUGE_VAL;
        }
}

template <class T>
inline void max_places(Span part, const T* x, int64_t* y, const long* in, const long* out,
                       const long* kernel, const long* strides, const long* dilations,
                       const long* pads, const long*, long columns) {
    for (long u = part.first; u < part.last; ++u)
        for (long o = 0; o < volume(out); ++o) {
            const T* from = x + u * volume(in);
            T best = 0;
            long at = -1;
            places(in, out, kernel, strides, dilations, pads, o,
                   [&](long i, long j, long k, bool inside) {
                       if (!inside) return;
                       const T v = from[(i * in[1] + j) * in[2] + k];
                       if (at >= 0 && !(v > best)) return;
                       best = v;
                       at = columns ? (k * in[1] + j) * in[0] + i : (i * in[1] + j) * in[2] + k;
                   });
            y[u * volume(out) + o] = at + u * volume(in);
        }
}

// `count` says what the sum is divided by: 0, places inside the image; 1, those inside it and its
// pads; 2, nothing.
template <class T>
inline void mean_pool(Span part, const T* x, T* y, const long* in, const long* out,
                      const long* kernel, const long* strides, const long* dilations,
                      const long* pads, const long* ends, long count) {
    for (long u = part.first; u < part.last; ++u)
        for (long o = 0; o < volume(out); ++o) {
            const T* from = x + u * volume(in);
            T sum = 0;
            long n = 0;
            places(in, out, kernel, strides, dilations, pads, o,
                   [&](long i, long j, long k, bool inside) {
                       if (inside) sum += from[(i * in[1] + j) * in[2] + k];
                       n += inside || (count == 1 && i < ends[0] && j < ends[1] && k < ends[2]);
                   });
            y[u * volume(out) + o] = count == 2 ? sum : (T)(n ? sum / (T)n : 0);
        }
}

}  // namespace rl
