// Reading between pixels: weighted gathers along one axis, grids, regions.
#pragma once
#include "types.hpp"
#include "vec.hpp"

namespace rl {

// y[o][j][i] = sum over taps of weights[j] * x[o][places[j]][i]; whole numbers are rounded.
template <class T, class F>
inline void weighted(Span part, const T* x, const int64_t* places, const F* weights, T* y, long n,
                     long length, long taps, long inner) {
    for (long u = part.first; u < part.last; ++u) {
        const long j = u % length;
        const T* from = x + u / length * n * inner;
        const int64_t* at = places + j * taps;
        const F* w = weights + j * taps;
        T* to = y + u * inner;
        if (taps == 1 && w[0] == 1) {
            memcpy((void*)to, (const void*)(from + at[0] * inner), (size_t)inner * sizeof(T));
        } else if constexpr (whole<T>) {
            for (long i = 0; i < inner; ++i) {
                F sum = 0;
                for (long k = 0; k < taps; ++k) sum += w[k] * (F)from[at[k] * inner + i];
                to[i] = (T)rint(sum);
            }
        } else {
            for (long i = 0; i < inner; ++i) to[i] = w[0] * from[at[0] * inner + i];
            for (long k = 1; k < taps; ++k) {
                const T* row = from + at[k] * inner;
                for (long i = 0; i < inner; ++i) to[i] += w[k] * row[i];
            }
        }
    }
}

// A place folded back into [low, high], as often as it takes.
template <class T> inline T folded(T x, T low, T high) {
    const T range = high - low;
    if (range <= 0) return low;
    T away = x < low ? low - x : x - low;
    const T turns = floor(away / range);
    away -= turns * range;
    return fmod(turns, (T)2) == 0 ? low + away : high - away;
}

template <class T> inline T cubic_weight(T d) {
    const T a = (T)-0.75;
    d = d < 0 ? -d : d;
    if (d <= 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
    return d < 2 ? ((a * d - 5 * a) * d + 8 * a) * d - 4 * a : (T)0;
}

// One pixel by whole coordinates, 0 outside, or the one that the edge rule names.
template <class T>
RL_INLINE T pixel(const T* x, const long* size, const long* at, long rule, bool aligned) {
    long offset = 0;
    for (int a = 0; a < 3; ++a) {
        long i = at[a];
        if (rule == 1) i = i < 0 ? 0 : i >= size[a] ? size[a] - 1 : i;
        if (rule == 2) {
            const double low = aligned ? 0 : -0.5, high = (double)size[a] - (aligned ? 1 : 0.5);
            i = (long)rint(folded((double)i, low, high));
            i = i < 0 ? 0 : i >= size[a] ? size[a] - 1 : i;
        }
        if (i < 0 || i >= size[a]) return 0;
        offset = offset * size[a] + i;
    }
    return x[offset];
}

template <class T>
inline void grid_sample(Span part, const T* x, const T* grid, T* y, long channels, const long* size,
                        long rank, long points, long mode, long rule, long aligned) {
    const long plane = size[0] * size[1] * size[2];
    for (long u = part.first; u < part.last; ++u) {
        const long b = u / points, p = u % points;
        T at[3] = {0, 0, 0};
        for (long a = 0; a < rank; ++a) {
            const long axis = 2 - a;  // the grid names columns first
            const T g = grid[u * rank + a], n = (T)size[axis];
            T v = aligned ? (g + 1) / 2 * (n - 1) : ((g + 1) * n - 1) / 2;
            if (rule == 1) v = v < 0 ? 0 : v > n - 1 ? n - 1 : v;
            if (rule == 2) v = folded(v, (T)(aligned ? 0 : -0.5), (T)(aligned ? n - 1 : n - (T)0.5));
            if (!(v - v == 0)) v = -100;  // neither infinite nor not a number
            at[axis] = v < (T)-1e6 ? (T)-1e6 : v > (T)1e6 ? (T)1e6 : v;
        }
        long low[3];
        T weight[3][4];
        const long taps = mode == 0 ? 1 : mode == 1 ? 2 : 4;
        long count[3];
        for (int a = 0; a < 3; ++a) {
            count[a] = a < 3 - rank ? 1 : taps;
            low[a] = mode == 0 ? (long)rint(at[a]) : (long)floor(at[a]) - (mode == 2 ? 1 : 0);
            if (count[a] == 1) low[a] = (long)rint(at[a]);
            for (long k = 0; k < count[a]; ++k) {
                const T d = at[a] - (T)(low[a] + k);
                weight[a][k] = count[a] == 1 ? 1 : mode == 1 ? 1 - (d < 0 ? -d : d) : cubic_weight(d);
            }
        }
        for (long c = 0; c < channels; ++c) {
            const T* from = x + (b * channels + c) * plane;
            T sum = 0;
            for (long i = 0; i < count[0]; ++i)
                for (long j = 0; j < count[1]; ++j)
                    for (long k = 0; k < count[2]; ++k) {
                        const long here[3] = {low[0] + i, low[1] + j, low[2] + k};
                        sum += weight[0][i] * weight[1][j] * weight[2][k] *
                               pixel(from, size, here, rule, aligned);
                    }
            y[(b * channels + c) * points + p] = sum;
        }
    }
}

template <class T>
inline T between(const T* x, long high, long wide, T h, T w, T (&parts)[4]) {
    parts[0] = parts[1] = parts[2] = parts[3] = 0;
    if (h < -1 || h > (T)high || w < -1 || w > (T)wide) return 0;
    h = h < 0 ? 0 : h;
    w = w < 0 ? 0 : w;
    long i = (long)h, j = (long)w, i1 = i + 1, j1 = j + 1;
    if (i >= high - 1) i = i1 = high - 1, h = (T)i;
    if (j >= wide - 1) j = j1 = wide - 1, w = (T)j;
    const T a = h - (T)i, b = w - (T)j;
    parts[0] = (1 - a) * (1 - b) * x[i * wide + j];
    parts[1] = (1 - a) * b * x[i * wide + j1];
    parts[2] = a * (1 - b) * x[i1 * wide + j];
    parts[3] = a * b * x[i1 * wide + j1];
    return parts[0] + parts[1] + parts[2] + parts[3];
}

template <class T, class I>
inline void roi_align(Span part, const T* x, const T* regions, const I* batch, T* y, long channels,
                      long high, long wide, long rows, long columns, long ratio, double scale,
                      double shift, long highest) {
    for (long u = part.first; u < part.last; ++u) {
        const long r = u / channels, c = u % channels;
        const T* box = regions + r * 4;
        const T* from = x + ((long)batch[r] * channels + c) * high * wide;
        const T w0 = box[0] * (T)scale - (T)shift, h0 = box[1] * (T)scale - (T)shift;
        T w = box[2] * (T)scale - (T)shift - w0, h = box[3] * (T)scale - (T)shift - h0;
        if (shift == 0) w = w < 1 ? 1 : w, h = h < 1 ? 1 : h;
        const T bh = h / (T)rows, bw = w / (T)columns;
        const long nh = ratio > 0 ? ratio : (long)ceil(bh), nw = ratio > 0 ? ratio : (long)ceil(bw);
        for (long i = 0; i < rows; ++i)
            for (long j = 0; j < columns; ++j) {
                T sum = 0, best = -HUGE_VALF, parts[4];
                for (long a = 0; a < nh; ++a)
                    for (long b = 0; b < nw; ++b) {
                        const T v = between(from, high, wide,
                                            h0 + (T)i * bh + ((T)a + (T)0.5) * bh / (T)nh,
                                            w0 + (T)j * bw + ((T)b + (T)0.5) * bw / (T)nw, parts);
                        sum += v;
                        for (T p : parts) best = p > best ? p : best;
                    }
                const long n = nh * nw < 1 ? 1 : nh * nw;
                y[(u * rows + i) * columns + j] = highest ? (nh * nw ? best : 0) : sum / (T)n;
            }
    }
}

template <class T, class I>
inline void unpooled(Span, const T* x, const I* places, T* y, long count, long size) {
    memset((void*)y, 0, (size_t)size * sizeof(T));
    for (long i = 0; i < count; ++i)
        if (places[i] >= 0 && places[i] < size) y[places[i]] = x[i];
}

}  // namespace rl
