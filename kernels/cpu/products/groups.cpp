// Rows of pixels of a convolution by groups (grouped.h).
//
// A depthwise tile keeps P pixels of one vector of channels in registers over all taps. Where the taps of a
// kernel's row follow each other pixel by pixel (stride 1), its weights are in registers too, and each of the
// P + K − 1 vectors that they read is loaded once; else each load is the operand of one multiply-add. A line
// of the rows that are read is in the first-level cache from one tap to the next, and from one row of the
// output to the next.
#include "products/grouped.h"

template <int P>
static void tile(const float* in, ptrdiff_t in_step, const Taps& taps, const float* w, ptrdiff_t w_step,
                 float* out, ptrdiff_t out_step) {
    vec acc[P] = {};
    for (int t = 0; t < taps.n; t++) {
        const vec weight = load(w + taps.which[t] * w_step);
        const float* a = in + taps.at[t];
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) acc[p] += load(a + p * in_step) * weight;
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) store(out + p * out_step, acc[p]);
}

// The same for runs of K taps; `turned`: each begins with its last.
template <int K, bool turned, int P>
static void run_tile(const float* in, ptrdiff_t in_step, const Taps& taps, const float* w, ptrdiff_t w_step,
                     float* out, ptrdiff_t out_step) {
    vec acc[P] = {};
    for (int t = 0; t < taps.n; t += K) {
        const float* a = in + taps.at[turned ? t + K - 1 : t];
        vec weight[K];
#pragma GCC unroll 8
        for (int k = 0; k < K; k++) weight[k] = load(w + (taps.which[t] + (turned ? K - 1 - k : k)) * w_step);
#pragma GCC unroll 16
        for (int q = 0; q < P + K - 1; q++) {
            const vec x = load(a + q * in_step);
#pragma GCC unroll 8
            for (int k = 0; k < K; k++)
                if (q >= k && q - k < P) acc[q - k] += x * weight[k];
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) store(out + p * out_step, acc[p]);
}

constexpr int MOST = 8;  // pixels of a tile
using Tile = decltype(&tile<1>);
static const Tile TILES[MOST] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>, tile<7>, tile<8>};

template <int K, bool turned>
static const Tile* runs() {
    static const Tile tiles[MOST] = {run_tile<K, turned, 1>, run_tile<K, turned, 2>, run_tile<K, turned, 3>,
                                     run_tile<K, turned, 4>, run_tile<K, turned, 5>, run_tile<K, turned, 6>,
                                     run_tile<K, turned, 7>, run_tile<K, turned, 8>};
    return tiles;
}

static const Tile* tiles(int run) {
    switch (run) {
    case 3: return runs<3, false>();
    case 5: return runs<5, false>();
    case 7: return runs<7, false>();
    case -3: return runs<3, true>();
    case -5: return runs<5, true>();
    case -7: return runs<7, true>();
    default: return TILES;
    }
}

void Groups::rows(const float* in, const Taps* taps, int rows, float* out, ptrdiff_t out_row,
                  ptrdiff_t out_step, int pixels) const {
    if (depthwise()) {
        const ptrdiff_t w_step = round_up(C, L);
        const Tile* const by_size = tiles(run);
        const int n_tiles = (pixels + MOST - 1) / MOST, size = pixels / n_tiles,
                  larger = pixels % n_tiles;  // as even as can be
        for (int c = 0; c < C; c += L)
            for (int i = 0, p = 0; i < n_tiles; i++) {
                const int P = size + (i < larger);
                for (int r = 0; r < rows; r++)
                    by_size[P - 1](in + c + p * in_step, in_step, taps[r], weights + c, w_step,
                                   out + r * out_row + c + p * out_step, out_step);
                p += P;
            }
        return;
    }
    const int V = outer % (2 * L) ? 1 : 2;
    const Cut cut = cut_pixels(V, in_step, pixels);
    const float* w = weights;
    for (int c = 0; c < C; c += V * L) {
        const int end = c + V * L < C ? c + V * L : C, first = c / outer,
                  K = ((end - 1) / outer - first + 1) * inner;
        for (int r = 0; r < rows; r++) {
            const Product product{V,
                                  in_step,
                                  out_step,
                                  taps[r].at,
                                  taps[r].n,
                                  K,
                                  w + (taps[r].n ? static_cast<ptrdiff_t>(taps[r].which[0]) * K * V * L : 0),
                                  K,
                                  false};
            multiply(product, cut, in + static_cast<ptrdiff_t>(first) * inner, out + r * out_row + c);
        }
        w += static_cast<ptrdiff_t>(n_all) * K * V * L;
    }
}
