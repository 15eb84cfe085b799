// Recurrent cells with every option of ONNX: any activations, clipping, peepholes, sequences of
// different lengths. One batch entry after the other; the input's half was one product before.
#pragma once
#include "math.hpp"

namespace rl {

// sums[g][i] = before[g][i] + h r for the gates [first, last); r is [hidden][G][padded].
template <int G>
inline void recurrent_sums(const float* before, const float* h, const float* r, float* sums,
                           long hidden, long padded, int first, int last) {
    for (int g = first; g < last; ++g)
        for (long i = 0; i < padded; i += W) {
            vf a = load(before + g * padded + i), b = {}, c = {}, d = {};
            const float* from = r + g * padded + i;
            long k = 0;
            for (; k + 4 <= hidden; k += 4, from += 4 * G * padded) {
                a += h[k] * load(from);
                b += h[k + 1] * load(from + G * padded);
                c += h[k + 2] * load(from + 2 * G * padded);
                d += h[k + 3] * load(from + 3 * G * padded);
            }
            for (; k < hidden; ++k, from += G * padded) a += h[k] * load(from);
            store(sums + g * padded + i, (a + b) + (c + d));
        }
}

// G names the cell: 1 RNN, 3 GRU (gates z, r, h), 4 LSTM (gates i, o, f, c). `rest` holds the
// GRU's bias inside its reset gate, then the LSTM's peepholes for i, o, f; `y` holds all states,
// then the last ones, then the last cells.
template <int G, class F, class A, class B>
inline void recurrent(Span part, const float* before, const float* r, const float* rest,
                      const float* h0, const float* c0, const int32_t* lengths, float* y,
                      char* scratch, long steps, long batch, long hidden, long padded,
                      long directions, long direction, long reverse, long later, long coupled,
                      double clip, F f, A g, B out) {
    float* const sums = (float*)scratch;
    float* const h = sums + G * padded;
    float* const cell = h + padded;
    float* const reset = cell + padded;
    const float most = clip > 0 ? (float)clip : HUGE_VALF;
    const auto cut = [most](float x) { return x < -most ? -most : x > most ? most : x; };
    const float* const peep = rest + hidden;
    float* const ends = y + steps * directions * batch * hidden;
    for (long b = part.first; b < part.last; ++b) {
        const long own = (direction * batch + b) * hidden;
        for (long i = 0; i < padded; ++i) {
            h[i] = i < hidden ? h0[own + i] : 0.f;
            cell[i] = i < hidden ? c0[own + i] : 0.f;
        }
        const long length = lengths[b] < 0 ? 0 : lengths[b] > steps ? steps : (long)lengths[b];
        for (long s = 0; s < steps; ++s) {
            const long now = s >= length ? s : reverse ? length - 1 - s : s;
            float* const to = y + ((now * directions + direction) * batch + b) * hidden;
            if (s >= length) {
                for (long i = 0; i < hidden; ++i) to[i] = 0;
                continue;
            }
            const float* const x = before + (now * batch + b) * G * padded;
            if constexpr (G == 1) {
                recurrent_sums<G>(x, h, r, sums, hidden, padded, 0, 1);
                for (long i = 0; i < hidden; ++i) h[i] = f(cut(sums[i]));
            } else if constexpr (G == 3) {
                recurrent_sums<G>(x, h, r, sums, hidden, padded, 0, 2);
                const float* const own_part = x + 2 * padded;
                for (long i = 0; i < hidden; ++i) reset[i] = f(cut(sums[padded + i]));
                float* const last = sums + 2 * padded;
                if (later) {
                    // The bias inside the gate stands where gate 1's sums were.
                    float* const inside = sums + padded;
                    for (long i = 0; i < padded; ++i) inside[i] = i < hidden ? rest[i] : 0.f;
                    recurrent_sums<G>(inside - 2 * padded, h, r, sums, hidden, padded, 2, 3);
                    for (long i = 0; i < hidden; ++i) last[i] = own_part[i] + reset[i] * last[i];
                } else {
                    for (long i = 0; i < hidden; ++i) reset[i] *= h[i];
                    recurrent_sums<G>(x, reset, r, sums, hidden, padded, 2, 3);
                }
                for (long i = 0; i < hidden; ++i) {
                    const float z = f(cut(sums[i]));
                    h[i] = (1.f - z) * g(cut(last[i])) + z * h[i];
                }
            } else {
                recurrent_sums<G>(x, h, r, sums, hidden, padded, 0, 4);
                for (long j = 0; j < hidden; ++j) {
                    const float i = f(cut(sums[j] + peep[j] * cell[j]));
                    const float keep =
                        coupled ? 1.f - i
                                : f(cut(sums[2 * padded + j] + peep[2 * hidden + j] * cell[j]));
                    cell[j] = keep * cell[j] + i * g(cut(sums[3 * padded + j]));
                    const float o = f(cut(sums[padded + j] + peep[hidden + j] * cell[j]));
                    h[j] = o * out(cell[j]);
                }
            }
            for (long i = 0; i < hidden; ++i) to[i] = h[i];
        }
        for (long i = 0; i < hidden; ++i) {
            ends[own + i] = h[i];
            ends[directions * batch * hidden + own + i] = cell[i];
        }
    }
}

}  // namespace rl
