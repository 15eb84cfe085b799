// Attention for a tile of M query rows: their scores stay in the first-level cache.
#pragma once
#include "gemm.hpp"
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

}  // namespace rl
