// The recurrent half of an LSTM: the input's half was one matrix product over all steps before.
#pragma once
#include "gemm.hpp"
#include "math.hpp"

namespace rl {

// One step for U blocks of hidden units, whose four gates (i, o, f, c as in ONNX) are 4 U chains:
//   i, o, f = sigmoid(.), g = tanh(.), cell = f * cell + i * g, y = o * tanh(cell).
// `before` holds x W + b, gate after gate, `padded` floats each; r is [hidden][U][4][W].
template <int U>
inline void lstm_step(const float* before, const float* h, const float* r, float* y, float* cell,
                      long hidden, long padded, long unit) {
    vf acc[1][4 * U] = {};
    multiply<1, 4 * U>(acc, h, 0, r, hidden);
    RL_UNROLL for (int u = 0; u < U; ++u) {
        const long at = unit + u * W;
        const vf i = sigmoid(acc[0][4 * u] + load(before + at));
        const vf o = sigmoid(acc[0][4 * u + 1] + load(before + padded + at));
        const vf f = sigmoid(acc[0][4 * u + 2] + load(before + 2 * padded + at));
        const vf g = tanh(acc[0][4 * u + 3] + load(before + 3 * padded + at));
        const int n = hidden - at < W ? (int)(hidden - at) : W;
        const vf old = n == W ? load(cell + at) : load_first(cell + at, n);
        const vf now = f * old + i * g, out = o * tanh(now);
        if (n == W) {
            store(cell + at, now);
            store(y + at, out);
        } else {
            store_first(cell + at, now, n);
            store_first(y + at, out, n);
        }
    }
}

}  // namespace rl
