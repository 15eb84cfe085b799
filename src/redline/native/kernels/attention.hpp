// Attention for a tile of M query rows: their scores stay in the first-level cache.
#pragma once
#include "any_rows.hpp"
#include "rows.hpp"

namespace rl {

struct AsItIs {};

// y[M][D] = after(softmax(before(q[M][K] keys[K][n]))) values[n][D], keys and values packed.
template <int M, int B, int C, class Before, class After>
inline void attention(const float* q, long lda, const float* keys, long K, float* s, long ld,
                      long n, const float* values, float* y, long ldy, long D,
                      const Before& before, const After& after) {
    for (long at = 0; at < n; at += B * W, keys += K * B * W)
        gemm_tile<M, B>(q, lda, keys, K, s, ld, 0, at, n, (const char*)(keys + K * B * W), before);
    for (int i = 0; i < M; ++i) {
        softmax(s + i * ld, s + i * ld, n);
        if constexpr (!__is_same(After, AsItIs))
            for (long j = 0; j < n; ++j) s[i * ld + j] = after(s[i * ld + j]);
    }
    const auto plain = [](vf acc, long, long) { return acc; };
    for (long at = 0; at < D; at += C * W, values += n * C * W)
        gemm_tile<M, C>(s, ld, values, n, y, ldy, 0, at, D, (const char*)(values + n * C * W), plain);
}

// The same for more keys than the first-level cache holds scores of: `rows` <= R rows meet `block`
// keys at a time. Each row keeps the highest score so far and the sum of exp(score - highest);
// where a block raises the highest, sum and y shrink by exp(old - new), so that in the end
// y / sum is softmax(scores) values (Milakov and Gimelshein, arXiv 1805.02867). s is [R][block].
// GUARDED: weights that are NaN count as 0, as in a row whose keys are all masked.
template <int M, int B, int C, int R, bool GUARDED, class Before>
inline void attention_blocks(const float* q, long lda, long rows, const float* keys, long K,
                             float* s, long ld, long block, long n, const float* values, float* y,
                             long ldy, long D, const Before& before) {
    float top[R], total[R];
    for (long i = 0; i < rows; ++i) top[i] = -HUGE_VALF, total[i] = 0;
    for (long from = 0; from < n; from += block) {
        const long count = n - from < block ? n - from : block;
        const auto scored = [&](vf acc, long m, long j) { return before(acc, m, from + j); };
        for (long at = 0; at < count; at += B * W)
            gemm_rows<M, B>(q, lda, keys + (from + at) * K, K, s, ld, 0, rows, at, count, scored);
        for (long i = 0; i < rows; ++i) {
            const float high = maximum(top[i], highest(s + i * ld, count));
            const float base = high == -HUGE_VALF ? 0.f : high;  // all masked so far
            const float shrink = exp(top[i] - base);
            total[i] = total[i] * shrink + exp_row(s + i * ld, s + i * ld, count, base);
            top[i] = high;
            if (from && shrink != 1.f) scale_row(y + i * ldy, D, shrink);
        }
        const auto plain = [](vf acc, long, long) { return acc; };
        const auto added = [&](vf acc, long m, long j) {
            const float* old = y + m * ldy + j;
            return acc + (j + W <= D ? load(old) : load_first(old, (int)(D - j)));
        };
        for (long at = 0; at < D; at += C * W) {
            const float* panel = values + at * n + from * C * W;
            if (from) gemm_rows<M, C>(s, ld, panel, count, y, ldy, 0, rows, at, D, added);
            else gemm_rows<M, C>(s, ld, panel, count, y, ldy, 0, rows, at, D, plain);
        }
    }
    for (long i = 0; i < rows; ++i) {
        if (GUARDED && !(total[i] > 0)) memset(y + i * ldy, 0, (size_t)D * 4);
        else scale_row(y + i * ldy, D, 1.f / total[i]);
    }
}

}  // namespace rl
