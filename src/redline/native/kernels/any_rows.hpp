// Products whose number of rows is known only at run: full tiles, then ever smaller ones.
#pragma once
#include "gemm.hpp"

namespace rl {

// Rows [m, last) of A by one panel of B. What is left after the tiles of M takes tiles of 4, 2 and
// 1 rows: a tile for each remainder would be compiled M times and run no faster.
template <int M, int B, class A, class C, class E>
RL_INLINE void gemm_rows(const A* a, long lda, weights_of<A> b, long K, C* c, long ldc,
                         long m, long last, long n, long N, const E& epilogue) {
    const char* next = (const char*)(b + K * B * W);
    for (; m + M <= last; m += M, next += K * 4 * sizeof *b)
        gemm_tile<M, B>(a, lda, b, K, c, ldc, m, n, N, next, epilogue);
    if constexpr (M > 4)
        for (; m + 4 <= last; m += 4) gemm_tile<4, B>(a, lda, b, K, c, ldc, m, n, N, next, epilogue);
    if constexpr (M > 2)
        for (; m + 2 <= last; m += 2) gemm_tile<2, B>(a, lda, b, K, c, ldc, m, n, N, next, epilogue);
    if constexpr (M > 1)
        for (; m < last; ++m) gemm_tile<1, B>(a, lda, b, K, c, ldc, m, n, N, next, epilogue);
}

}  // namespace rl
