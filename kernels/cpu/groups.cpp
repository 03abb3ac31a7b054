// One row of pixels of a convolution by groups (grouped.h).
//
// A depthwise tile keeps P pixels of one vector of channels in registers over all taps: for each tap one load of its weight, and P
// loads, each the operand of a multiply-add. Every line of the rows that are read is in the first-level cache from one tap to the next.
#include "grouped.h"

template <int P>
static void tile(const float* in, ptrdiff_t in_step, const ptrdiff_t* taps, const int* which, int n_taps, const float* w, ptrdiff_t w_step, float* out, ptrdiff_t out_step) {
    vec acc[P] = {};
    for (int t = 0; t < n_taps; t++) {
        const vec weight = load(w + which[t] * w_step);
        const float* a = in + taps[t];
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) acc[p] += load(a + p * in_step) * weight;
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) store(out + p * out_step, acc[p]);
}

using Tile = decltype(&tile<1>);
static const Tile TILES[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>, tile<7>, tile<8>};

void Groups::row(const float* in, const ptrdiff_t* taps, const int* which, int n_taps, float* out, ptrdiff_t out_step, int pixels) const {
    if (depthwise()) {
        const ptrdiff_t w_step = round_up(C, L);
        const int tiles = (pixels + 7) / 8, size = pixels / tiles, larger = pixels % tiles;  // as even as can be
        for (int c = 0; c < C; c += L)
            for (int i = 0, p = 0; i < tiles; i++) {
                const int P = size + (i < larger);
                TILES[P - 1](in + c + p * in_step, in_step, taps, which, n_taps, weights + c, w_step, out + c + p * out_step, out_step);
                p += P;
            }
        return;
    }
    const int V = outer % (2 * L) ? 1 : 2;
    const Cut cut = cut_pixels(V, in_step, pixels);
    const float* w = weights;
    for (int c = 0; c < C; c += V * L) {
        const int end = c + V * L < C ? c + V * L : C, first = c / outer, K = ((end - 1) / outer - first + 1) * inner;
        const Product product{V, in_step, out_step, taps, n_taps, K, w + (n_taps ? static_cast<ptrdiff_t>(which[0]) * K * V * L : 0), K, false};
        multiply(product, cut, in + static_cast<ptrdiff_t>(first) * inner, out + c);
        w += static_cast<ptrdiff_t>(n_all) * K * V * L;
    }
}
