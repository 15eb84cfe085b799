// Matrix products: a tile of sums in registers, B packed in panels as wide as the tile.
#pragma once
#include "integers.hpp"

namespace rl {

// Where row i begins: rows a step apart, or each at an offset of its own.
RL_INLINE long begins(long step, int i) { return i * step; }
RL_INLINE long begins(const long* offsets, int i) { return offsets[i]; }

// acc[M][B] += a[m * step + k] * b[k][B vectors], for k in [0, n). The one inner loop of products
// and convolutions: the sums never leave their registers. It is not unrolled, and the compiler does
// not see that steps read the same places: given several at once, GCC loads for all of them first and has
// no registers left. A step of twelve sums takes longer than its loop costs.
template <int M, int B, class S, class A, class P, class Rows>
RL_INLINE void multiply(S (&acc)[M][B], const A* a, Rows step, const P* b, long n) {
    _Pragma("GCC unroll 1") for (long k = 0; k < n; ++k) {
        decltype(load(b)) row[B];
        RL_UNROLL for (int j = 0; j < B; ++j) row[j] = load(b + j * W);
        RL_UNROLL for (int i = 0; i < M; ++i) {
            const auto x = set(a[begins(step, i)]);
            RL_UNROLL for (int j = 0; j < B; ++j) acc[i][j] = plus(acc[i][j], x, row[j]);
        }
        a += 1;
        b += B * W;
        __asm__("" : "+r"(a));
    }
}

// A product with few rows takes as long as its weights take to come: they are asked for this many
// bytes before they are used, across pages too, where the processor's own prefetching ends.
constexpr long FAR = 4096;
template <int M> constexpr bool streams = M <= 2;

template <class P> RL_INLINE void fetch(const P* p, long count) {
    constexpr long LINE = 64 / sizeof(P);
    for (long i = 0; i < count; i += LINE) __builtin_prefetch((const char*)(p + i) + FAR, 0, 3);
}

template <class A> using weights_of = const typename product_of<A>::weight*;

// One tile: M rows of A by one panel of B; `epilogue(sum, row, column)` says what is stored. Of a
// product in parts of K, all but the `first` go on with what C holds, and all but the `last` leave
// the bits of their sums there.
// Meanwhile `next`, a slice of the panel after this one, is fetched from memory, a line or two
// every few steps: the first tile of a panel would otherwise wait for it.
template <int M, int B, class A, class C, class E>
RL_INLINE void gemm_part(const A* a, long lda, weights_of<A> b, long K, C* c, long ldc, long m,
                         long n, long N, const char* next, bool first, bool last,
                         const E& epilogue) {
    typedef typename product_of<A>::sum S;
    S acc[M][B] = {};
    constexpr long STEP = 8;
    c += m * ldc;
    if constexpr (sizeof(C) == 4)
        if (!first)
            RL_UNROLL for (int i = 0; i < M; ++i)
                RL_UNROLL for (int j = 0; j < B; ++j) {
                    const long at = n + j * W;
                    if (at + W <= N) acc[i][j] = (S)load(c + i * ldc + at);
                    else if (at < N) acc[i][j] = (S)load_first(c + i * ldc + at, (int)(N - at));
                }
    long k = 0;
    constexpr long AHEAD = STEP * 4 * sizeof(*b);
    for (; k + STEP <= K; k += STEP, next += AHEAD) {
        if constexpr (streams<M>) fetch(b + k * B * W, STEP * B * W);
        else RL_UNROLL for (long i = 0; i < AHEAD; i += 64) __builtin_prefetch(next + i, 0, 2);
        multiply<M, B>(acc, a + m * lda + k, lda, b + k * B * W, STEP);
    }
    multiply<M, B>(acc, a + m * lda + k, lda, b + k * B * W, K - k);
    RL_UNROLL for (int i = 0; i < M; ++i) {
        RL_UNROLL for (int j = 0; j < B; ++j) {
            const long at = n + j * W;
            if (at >= N) continue;
            const vf y = last ? epilogue(as_float(acc[i][j]), m + i, at) : (vf)acc[i][j];
            if (at + W <= N) store(c + i * ldc + at, y);
            else store_first(c + i * ldc + at, y, (int)(N - at));
        }
    }
}

template <int M, int B, class A, class C, class E>
RL_INLINE void gemm_tile(const A* a, long lda, weights_of<A> b, long K, C* c, long ldc,
                         long m, long n, long N, const char* next, const E& epilogue) {
    gemm_part<M, B>(a, lda, b, K, c, ldc, m, n, N, next, true, true, epilogue);
}

// Rows come in `many` tiles of M and the rest of M - 1, so that no tile is nearly empty. Each tile
// fetches a slice of the panel at `after`; when that is whole they begin anew, since more would only
// drive A out of the cache.
template <int M, int B, class A, class C, class E>
RL_INLINE void gemm_panel_part(const A* a, long lda, weights_of<A> b, long K, C* c, long ldc,
                               long n, long N, long many, long rest, weights_of<A> after, bool first,
                               bool last, const E& epilogue) {
    constexpr long SLICES = B * W / 4 ? B * W / 4 : 1;
    long m = 0;
    const auto slice = [=](long i) { return (const char*)(after + i % SLICES * K * 4); };
    for (long i = 0; i < many; ++i, m += M)
        gemm_part<M, B>(a, lda, b, K, c, ldc, m, n, N, slice(i), first, last, epilogue);
    if constexpr (M > 1)
        for (long i = many; i < many + rest; ++i, m += M - 1)
            gemm_part<M - 1, B>(a, lda, b, K, c, ldc, m, n, N, slice(i), first, last, epilogue);
}

template <int M, int B, class A, class C, class E>
RL_INLINE void gemm_panel(const A* a, long lda, weights_of<A> b, long K, C* c, long ldc,
                          long n, long N, long many, long rest, const E& epilogue) {
    gemm_panel_part<M, B>(a, lda, b, K, c, ldc, n, N, many, rest, b + K * B * W, true, true,
                          epilogue);
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
