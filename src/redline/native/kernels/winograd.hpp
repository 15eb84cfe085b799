// Winograd's F(4x4, 3x3) and F(2x2, 3x3) over NCHWc: 36 products instead of 144 for 16 outputs, or
// 16 instead of 36 for 4 (Lavin and Gray, arXiv 1509.09308, with the points 0, 1, -1, 2, -2).
// O outputs in a row come of O + 2 inputs; each lane is a channel.
#pragma once
#include "conv.hpp"

namespace rl {

// One column of B^T d.
RL_INLINE void winograd_in(const vf (&d)[6], vf (&v)[6]) {
    const vf a = d[4] - 4.f * d[2], b = d[3] - 4.f * d[1];
    const vf e = d[4] - d[2], f = 2.f * (d[3] - d[1]);
    v[0] = 4.f * d[0] - 5.f * d[2] + d[4];
    v[1] = a + b;
    v[2] = a - b;
    v[3] = e + f;
    v[4] = e - f;
    v[5] = 4.f * d[1] - 5.f * d[3] + d[5];
}

RL_INLINE void winograd_in(const vf (&d)[4], vf (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
}

// One column of A^T m.
RL_INLINE void winograd_out(const vf (&m)[6], vf (&y)[4]) {
    const vf a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.f * d;
    y[2] = a + 4.f * c;
    y[3] = b + 8.f * d + m[5];
}

RL_INLINE void winograd_out(const vf (&m)[4], vf (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
}

// One column of G g, for the filters.
RL_INLINE void winograd_filter(const vf (&g)[3], vf (&u)[6]) {
    const vf s = (g[0] + g[2]) * (-1.f / 6), a = g[0] * (1.f / 24) + g[2] * (1.f / 6);
    const vf b = g[1] * (1.f / 6), c = g[1] * (1.f / 12);
    u[0] = g[0] * (1.f / 4);
    u[1] = s - b;
    u[2] = s + b;
    u[3] = a + c;
    u[4] = a - c;
    u[5] = g[2];
}

RL_INLINE void winograd_filter(const vf (&g)[3], vf (&u)[4]) {
    const vf s = (g[0] + g[2]) * .5f, b = g[1] * .5f;
    u[0] = g[0];
    u[1] = s + b;
    u[2] = s - b;
    u[3] = g[2];
}

// A x A pixels of one channel block -> its places in V, `step` floats apart.
template <int O>
inline void winograd_read(const float* x, long row, float* v, long step) {
    constexpr int A = O + 2;
    vf t[A][A];
    for (int j = 0; j < A; ++j) {
        vf d[A], u[A];
        RL_UNROLL for (int i = 0; i < A; ++i) d[i] = load(x + i * row + j * W);
        winograd_in(d, u);
        RL_UNROLL for (int i = 0; i < A; ++i) t[i][j] = u[i];
    }
    for (int i = 0; i < A; ++i) {
        vf u[A];
        winograd_in(t[i], u);
        RL_UNROLL for (int j = 0; j < A; ++j) store(v + (i * A + j) * step, u[j]);
    }
}

// The sums of one tile -> O x O pixels, those inside the image stored through the epilogue.
template <int O, class E>
RL_INLINE void winograd_write(const float* m, long step, float* y, long row, long ob, long h,
                              long v, long rows, long columns, const E& epilogue) {
    constexpr int A = O + 2;
    vf t[O][A];
    for (int j = 0; j < A; ++j) {
        vf d[A], u[O];
        RL_UNROLL for (int i = 0; i < A; ++i) d[i] = load(m + (i * A + j) * step);
        winograd_out(d, u);
        RL_UNROLL for (int i = 0; i < O; ++i) t[i][j] = u[i];
    }
    for (int i = 0; i < O && h + i < rows; ++i) {
        vf u[O];
        winograd_out(t[i], u);
        for (int j = 0; j < O && v + j < columns; ++j)
            store(y + i * row + j * W, epilogue(u[j], ob, h + i, v + j));
    }
}

// Filters [channels][3 x 3][B W] -> U, products `step` floats apart, each [channels][B W].
template <int O, int B>
inline void winograd_filters(const float* g, long channels, float* u, long step) {
    constexpr int A = O + 2;
    for (long c = 0; c < channels * B; ++c, u += W) {
        const float* const from = g + c / B * 9 * B * W + c % B * W;
        vf t[A][3];
        RL_UNROLL for (int j = 0; j < 3; ++j) {
            vf d[3], s[A];
            RL_UNROLL for (int i = 0; i < 3; ++i) d[i] = load(from + (i * 3 + j) * B * W);
            winograd_filter(d, s);
            RL_UNROLL for (int i = 0; i < A; ++i) t[i][j] = s[i];
        }
        for (int i = 0; i < A; ++i) {
            vf s[A];
            winograd_filter(t[i], s);
            RL_UNROLL for (int j = 0; j < A; ++j) store(u + (i * A + j) * step, s[j]);
        }
    }
}

// One of the products for P tiles: V [blocks][tiles][W] by U [channels][B W] -> M [B][tiles][W],
// added to what is there where there is `more`. Meanwhile `next`, a slice of the weights after
// these, is fetched: L lines at each step.
template <int P, int B, int L>
RL_INLINE void winograd_tile(const float* v, long blocks, long tiles, const float* u, float* m,
                             const char* next, bool more) {
    vf acc[P][B] = {};
    if (more)
        RL_UNROLL for (int p = 0; p < P; ++p)
            RL_UNROLL for (int j = 0; j < B; ++j) acc[p][j] = load(m + (j * tiles + p) * W);
    for (long c = 0; c < blocks; ++c) {
        RL_UNROLL for (int l = 0; l < L; ++l, next += 64) __builtin_prefetch(next, 0, 2);
        multiply<P, B>(acc, v + c * tiles * W, W, u, W);
        u += W * B * W;
    }
    RL_UNROLL for (int p = 0; p < P; ++p)
        RL_UNROLL for (int j = 0; j < B; ++j) store(m + (j * tiles + p) * W, acc[p][j]);
}

// What does not change over one convolution.
struct Winograd {
    long plane, row;                 // input: floats of a channel block, of a row
    long out_plane, out_row;         // output
    long rows, columns, across;      // output pixels, tiles in a row
};

// The input of tiles [first, first + count), for the channel blocks [from, to), as
// V [chunks of `depth` blocks][products, `step` floats apart][depth][count][W].
template <int O>
inline void winograd_input(const Winograd& g, const float* x, float* v, long depth, long step,
                           long first, long count, long from, long to) {
    for (long c = from; c < to; ++c) {
        float* const to_block = v + c / depth * (O + 2) * (O + 2) * step + c % depth * count * W;
        for (long i = 0; i < count; ++i) {
            const long h = (first + i) / g.across * O, w = (first + i) % g.across * O;
            winograd_read<O>(x + c * g.plane + h * g.row + w * W, g.row, to_block + i * W, step);
        }
    }
}

// One of the products for one panel of B output blocks over `blocks` channel blocks of `count` tiles,
// `many` times P and `rest` times one less.
template <int P, int B, int L>
inline void winograd_product(const float* v, long blocks, const float* u, float* m, long count,
                             long many, long rest, const float* after, bool more) {
    const char* next = (const char*)after;
    for (long i = 0; i < many; ++i, v += P * W, m += P * W, next += blocks * L * 64)
        winograd_tile<P, B, L>(v, blocks, count, u, m, next, more);
    if constexpr (P > 1)
        for (long i = 0; i < rest; ++i, v += (P - 1) * W, m += (P - 1) * W, next += blocks * L * 64)
            winograd_tile<P - 1, B, L>(v, blocks, count, u, m, next, more);
}

// The output of one panel of B blocks; `step` floats lie between two products of a tile.
template <int O, int B, class E>
inline void winograd_output(const Winograd& g, const float* m, long step, float* y, long first,
                            long count, long ob, const E& epilogue) {
    for (int j = 0; j < B; ++j)
        for (long i = 0; i < count; ++i) {
            const long h = (first + i) / g.across * O, w = (first + i) % g.across * O;
            winograd_write<O>(m + (j * count + i) * W, step,
                           y + j * g.out_plane + h * g.out_row + w * W, g.out_row, ob + j, h, w,
                           g.rows, g.columns, epilogue);
        }
}

}  // namespace rl
