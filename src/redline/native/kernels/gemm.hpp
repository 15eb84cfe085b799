// Matrix products: a tile of sums in registers, B packed in panels as wide as the tile.
#pragma once
#include "vec.hpp"

namespace rl {

// acc[M][B] += a[m * step + k] * b[k][B vectors], for k in [0, n). The one inner loop of products
// and convolutions: the sums never leave their registers.
template <int M, int B>
RL_INLINE void multiply(vf (&acc)[M][B], const float* a, long step, const float* b, long n) {
    for (long k = 0; k < n; ++k) {
        vf row[B];
        RL_UNROLL for (int j = 0; j < B; ++j) row[j] = load(b + j * W);
        RL_UNROLL for (int i = 0; i < M; ++i) {
            const vf x = set(a[i * step]);
            RL_UNROLL for (int j = 0; j < B; ++j) acc[i][j] += x * row[j];
        }
        a += 1;
        b += B * W;
    }
}

// One tile: M rows of A by one panel of B; `epilogue(sum, row, column)` says what is stored.
// Meanwhile `next`, a slice of the panel after this one, is fetched from memory, one line for
// every few steps: the first tile of a panel would otherwise wait for it.
template <int M, int B, class E>
RL_INLINE void gemm_tile(const float* a, long lda, const float* b, long K, float* c, long ldc,
                         long m, long n, long N, const char* next, const E& epilogue) {
    vf acc[M][B] = {};
    constexpr long STEP = 8;
    long k = 0;
    for (; k + STEP <= K; k += STEP, next += 128) {
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + 64, 0, 2);
        multiply<M, B>(acc, a + m * lda + k, lda, b + k * B * W, STEP);
    }
    multiply<M, B>(acc, a + m * lda + k, lda, b + k * B * W, K - k);
    RL_UNROLL for (int i = 0; i < M; ++i) {
        RL_UNROLL for (int j = 0; j < B; ++j) {
            const long at = n + j * W;
            if (at + W <= N) store(c + (m + i) * ldc + at, epilogue(acc[i][j], m + i, at));
            else if (at < N)
                store_first(c + (m + i) * ldc + at, epilogue(acc[i][j], m + i, at), (int)(N - at));
        }
    }
}

// Rows come in `many` tiles of M and the rest of M - 1, so that no tile is nearly empty.
template <int M, int B, class E>
RL_INLINE void gemm_panel(const float* a, long lda, const float* b, long K, float* c, long ldc,
                          long n, long N, long many, long rest, const E& epilogue) {
    long m = 0;
    const char* next = (const char*)(b + K * B * W);
    for (long i = 0; i < many; ++i, m += M, next += K * 16)
        gemm_tile<M, B>(a, lda, b, K, c, ldc, m, n, N, next, epilogue);
    if constexpr (M > 1)
        for (long i = 0; i < rest; ++i, m += M - 1, next += K * 16)
            gemm_tile<M - 1, B>(a, lda, b, K, c, ldc, m, n, N, next, epilogue);
}

// The rows [first, last) of tiles [t.first, t.last), of which `many` in all are M rows high and the
// others one less.
struct Tiles {
    long first, last, many, rest;
};

RL_INLINE Tiles tiles(Span t, long many, long M) {
    const auto row = [=](long i) { return i < many ? i * M : many * M + (i - many) * (M - 1); };
    const long high = t.first >= many ? 0 : (t.last < many ? t.last : many) - t.first;
    return {row(t.first), row(t.last), high, t.last - t.first - high};
}

// b[K][N] by any strides -> panels [N / (B W)][K][B W], the last one filled up with zeros.
template <int B>
inline void pack(const float* b, long sk, long sn, long K, long N, float* to) {
    for (long n = 0; n < N; n += B * W) {
        const long wide = N - n < B * W ? N - n : B * W;
        if (sk == 1) {  // along its rows, so that each line is read once
            for (long j = 0; j < wide; ++j)
                for (long k = 0; k < K; ++k) to[k * B * W + j] = b[(n + j) * sn + k];
            for (long j = wide; j < B * W; ++j)
                for (long k = 0; k < K; ++k) to[k * B * W + j] = 0;
            to += K * B * W;
            continue;
        }
        for (long k = 0; k < K; ++k, to += B * W) {
            const float* from = b + k * sk + n * sn;
            for (long j = 0; j < wide; ++j) to[j] = from[j * sn];
            for (long j = wide; j < B * W; ++j) to[j] = 0;
        }
    }
}

}  // namespace rl
