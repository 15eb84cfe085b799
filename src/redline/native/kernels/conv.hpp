// Convolutions and pooling over NCHWc. The input carries a halo of zeros, so no tile has an edge.
#pragma once
#include "gemm.hpp"

namespace rl {

// What the sums run over: `blocks` of input channels, then kernel rows, then columns, then `run`
// neighbouring floats (or pairs of whole numbers). A planar input has run = kernel width instead of channels.
struct Taps {
    long blocks, block, rows, row, columns, column, run;
};

// Where a tile's pixels go: those from `fit` on lie in the next row, `skip` floats further, and
// `width` pixels are a row. They come from `jump` floats further.
struct Wrap {
    long fit, skip, width, jump;
};

// P pixels by B blocks of output channels. Meanwhile `next`, a slice of the panel after this one,
// is fetched from memory: L lines at each step. Of sums taken in parts, all but the `first` go on
// with what y holds, and all but the `last` leave the bits of their sums there.
template <int P, int B, int L, bool JUMPS = false, class A, class Y, class E>
RL_INLINE void conv_tile(const A* x, long pixel, weights_of<A> w, const Taps& t, Y* y, long block,
                         long ob, long h, long v, const char* next, const E& epilogue,
                         const Wrap wrap = {P, 0, 0, 0}, bool first = true, bool last = true) {
    typedef typename product_of<A>::sum S;
    S acc[P][B] = {};
    const auto at = [=](int p, int j) {
        return y + j * block + p * W + (p < wrap.fit ? 0 : wrap.skip);
    };
    if constexpr (sizeof(Y) == 4)
        if (!first)
            RL_UNROLL for (int p = 0; p < P; ++p)
                RL_UNROLL for (int j = 0; j < B; ++j) acc[p][j] = (S)load(at(p, j));
    long from[P];
    RL_UNROLL for (int p = 0; p < P; ++p) from[p] = p * pixel + (p < wrap.fit ? 0 : wrap.jump);
    for (long c = 0; c < t.blocks; ++c)
        for (long i = 0; i < t.rows; ++i)
            for (long j = 0; j < t.columns; ++j) {
                if constexpr (streams<P>) fetch(w, t.run * B * W);
                else RL_UNROLL for (int l = 0; l < L; ++l, next += 64) __builtin_prefetch(next, 0, 2);
                const A* const here = x + c * t.block + i * t.row + j * t.column;
                if constexpr (JUMPS) multiply<P, B>(acc, here, +from, w, t.run);
                else multiply<P, B>(acc, here, pixel, w, t.run);
                w += t.run * B * W;
            }
    RL_UNROLL for (int p = 0; p < P; ++p) {
        const long over = p < wrap.fit ? 0 : 1;
        RL_UNROLL for (int j = 0; j < B; ++j)
            store(at(p, j), last ? epilogue(as_float(acc[p][j]), ob + j, h + over,
                                            v + p - over * wrap.width)
                                 : (vf)acc[p][j]);
    }
}

// Weights [channels][B W], each row by its channel's scale: NCHWc, `step` floats a block.
template <int B>
inline void scale_rows(const float* w, float* to, const float* scale, long step, long channels) {
    for (long k = 0; k < channels; ++k, w += B * W, to += B * W) {
        const vf x = set(scale[k / W * step + k % W]);
        RL_UNROLL for (int j = 0; j < B; ++j) store(to + j * W, load(w + j * W) * x);
    }
}

// A depthwise tile: P pixels of one block of channels. lines[i] + at is the first pixel under row i
// of the kernel; weights [kernel rows][columns][W].
template <int P, class E>
RL_INLINE void depthwise_tile(const float* const* lines, long at, long column, long pixel,
                              const float* w, int rows, int columns, float* y, long ob, long h,
                              long v, const E& epilogue) {
    vf acc[P] = {};
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
            const vf k = load(w + (i * columns + j) * W);
            const float* from = lines[i] + at + j * column;
            RL_UNROLL for (int p = 0; p < P; ++p) acc[p] += load(from + p * pixel) * k;
        }
    RL_UNROLL for (int p = 0; p < P; ++p) store(y + p * W, epilogue(acc[p], ob, h, v + p));
}

}  // namespace rl
