// Kernels that read or write at places named by whole numbers; a negative one counts from the end,
// and one outside is cut off at the edge, so that no index leads outside the array.
#pragma once
#include "types.hpp"
#include "vec.hpp"

namespace rl {

RL_INLINE long place_of(int64_t i, long n) {
    i = i < 0 ? i + n : i;
    return i < 0 ? 0 : i >= n ? n - 1 : (long)i;
}

// The offset in x, whose coordinate along `axis` is replaced, of element e of `dims`.
RL_INLINE long offset_of(long e, long at, long rank, const long* dims, const long* steps, long axis) {
    long offset = at * steps[axis];
    for (long a = rank - 1; a >= 0; --a) {
        if (a != axis) offset += e % dims[a] * steps[a];
        e /= dims[a];
    }
    return offset;
}

template <class T, class I>
inline void gather_elements(Span part, const T* x, const I* at, T* y, long rank, const long* dims,
                            const long* steps, long axis, long length) {
    for (long e = part.first; e < part.last; ++e)
        y[e] = x[offset_of(e, place_of(at[e], length), rank, dims, steps, axis)];
}

template <class T, class I, class F>
inline void scatter_elements(Span, const T* x, const I* at, const T* updates, T* y, long size,
                             long rank, const long* dims, const long* steps, long axis,
                             long length, long count, F join) {
    memcpy((void*)y, (const void*)x, (size_t)size * sizeof(T));
    for (long e = 0; e < count; ++e) {
        T& to = y[offset_of(e, place_of(at[e], length), rank, dims, steps, axis)];
        to = (T)join((wide<T>)to, (wide<T>)updates[e]);
    }
}

// Which slice the `depth` numbers at `at` name.
template <class I> RL_INLINE long slice_of(const I* at, long depth, const long* dims) {
    long slice = 0;
    for (long d = 0; d < depth; ++d) slice = slice * dims[d] + place_of(at[d], dims[d]);
    return slice;
}

template <class T, class I>
inline void gather_nd(Span part, const T* x, const I* at, T* y, long depth, const long* dims,
                      long inner, long per, long batch) {
    for (long u = part.first; u < part.last; ++u)
        memcpy((void*)(y + u * inner),
               (const void*)(x + u / per * batch + slice_of(at + u * depth, depth, dims) * inner),
               (size_t)inner * sizeof(T));
}

template <class T, class I, class F>
inline void scatter_nd(Span, const T* x, const I* at, const T* updates, T* y, long size, long depth,
                       const long* dims, long inner, long count, F join) {
    memcpy((void*)y, (const void*)x, (size_t)size * sizeof(T));
    for (long u = 0; u < count; ++u) {
        T* to = y + slice_of(at + u * depth, depth, dims) * inner;
        for (long i = 0; i < inner; ++i)
            to[i] = (T)join((wide<T>)to[i], (wide<T>)updates[u * inner + i]);
    }
}

// A cache's rows from starts[b] on are written; a circular one begins again at its end.
template <bool CIRCULAR, class T, class I>
inline void tensor_scatter(Span, const T* x, const T* updates, const I* starts, T* y, long size,
                           long batch, long middle, long length, long count, long inner) {
    memcpy((void*)y, (const void*)x, (size_t)size * sizeof(T));
    for (long b = 0; b < batch; ++b)
        for (long m = 0; m < middle; ++m)
            for (long i = 0; i < count; ++i) {
                long at = (long)starts[b] + i;
                if (CIRCULAR) at = (at % length + length) % length;
                if (at < 0 || at >= length) continue;
                memcpy((void*)(y + ((b * middle + m) * length + at) * inner),
                       (const void*)(updates + ((b * middle + m) * count + i) * inner),
                       (size_t)inner * sizeof(T));
            }
}

// x is [time][batch][inner], or [batch][time][inner]; the first lengths[b] steps are turned round.
template <class T, class I>
inline void reverse_sequence(Span, const T* x, const I* lengths, T* y, long first, long second,
                             long inner, long batch_first) {
    for (long i = 0; i < first; ++i)
        for (long j = 0; j < second; ++j) {
            const long b = batch_first ? i : j, t = batch_first ? j : i;
            const long n = (long)lengths[b], s = t < n ? n - 1 - t : t;
            const long from = batch_first ? b * second + s : s * second + b;
            memcpy((void*)(y + (i * second + j) * inner), (const void*)(x + from * inner),
                   (size_t)inner * sizeof(T));
        }
}

}  // namespace rl
