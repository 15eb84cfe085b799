// Kernels over one contiguous row: softmax, norms, reductions. Tails are read element by element.
#pragma once
#include "math.hpp"

namespace rl {

template <class Step, class Join>
RL_INLINE float reduce(const float* x, long n, float start, Step step, Join join) {
    vf a = set(start), b = a;
    long i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        a = step(a, load(x + i));
        b = step(b, load(x + i + W));
    }
    for (; i + W <= n; i += W) a = step(a, load(x + i));
    a = join(a, b);
    float total = a[0];
    for (int k = 1; k < W; ++k) total = join(total, (float)a[k]);
    for (; i < n; ++i) total = step(total, x[i]);
    return total;
}

RL_INLINE float highest(const float* x, long n) {
    return reduce(x, n, -HUGE_VALF, [](auto a, auto v) { return maximum(a, v); },
                  [](auto a, auto v) { return maximum(a, v); });
}

// x[0, n) *= factor
RL_INLINE void scale_row(float* x, long n, float factor) {
    long i = 0;
    for (; i + W <= n; i += W) store(x + i, load(x + i) * factor);
    for (; i < n; ++i) x[i] *= factor;
}

// y = exp(x - base); the sum of it.
RL_INLINE float exp_row(const float* x, float* y, long n, float base) {
    vf sums = {};
    float rest = 0;
    long i = 0;
    for (; i + W <= n; i += W) {
        const vf e = exp(load(x + i) - base);
        store(y + i, e);
        sums += e;
    }
    for (; i < n; ++i) rest += y[i] = exp(x[i] - base);
    return sum(sums) + rest;
}

inline void softmax(const float* x, float* y, long n) {
    const float total = exp_row(x, y, n, highest(x, n));
    scale_row(y, n, 1.f / total);
}

inline void logsoftmax(const float* x, float* y, long n) {
    const float top = highest(x, n);
    vf sums = {};
    float rest = 0;
    long i = 0;
    for (; i + W <= n; i += W) sums += exp(load(x + i) - top);
    for (; i < n; ++i) rest += exp(x[i] - top);
    const float down = top + log(sum(sums) + rest);
    for (i = 0; i < n; ++i) y[i] = x[i] - down;
}

// Two passes for mean and variance: one pass loses digits where the mean is large.
inline void layernorm(const float* x, float* y, long n, const float* gain, const float* bias,
                      float epsilon) {
    const auto add = [](auto a, auto v) { return a + v; };
    const float mean = reduce(x, n, 0.f, add, add) / (float)n;
    const float square = reduce(x, n, 0.f, [mean](auto a, auto v) { return a + (v - mean) * (v - mean); }, add);
    const float scale = 1.f / __builtin_sqrtf(square / (float)n + epsilon);
    long i = 0;
    for (; i + W <= n; i += W) {
        vf v = (load(x + i) - mean) * scale;
        if (gain) v *= load(gain + i);
        if (bias) v += load(bias + i);
        store(y + i, v);
    }
    for (; i < n; ++i) y[i] = (x[i] - mean) * scale * (gain ? gain[i] : 1.f) + (bias ? bias[i] : 0.f);
}

inline void rmsnorm(const float* x, float* y, long n, const float* gain, const float* bias,
                    float epsilon) {
    const auto add = [](auto a, auto v) { return a + v; };
    const float square = reduce(x, n, 0.f, [](auto a, auto v) { return a + v * v; }, add);
    const float scale = 1.f / __builtin_sqrtf(square / (float)n + epsilon);
    for (long i = 0; i < n; ++i) y[i] = x[i] * scale * (gain ? gain[i] : 1.f) + (bias ? bias[i] : 0.f);
}

}  // namespace rl
