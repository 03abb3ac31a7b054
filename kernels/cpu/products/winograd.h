// Winograd F(M×M, 3×3), stride 1, for M = 4 and 2: a quarter, or four ninths, of the products (Lavin, Gray 2016).
// The weight's transform was made once: the weights are frozen.
#pragma once
#include "base.h"
#include "products/multiply.h"
#include "products/weights.h"

template <int M>
inline void transform_input(const vec* d, vec* o) {  // Bᵀ d
    if constexpr (M == 4) {
        vec a = d[4] - 4.f * d[2], b = d[3] - 4.f * d[1], c = d[4] - d[2], e = 2.f * (d[3] - d[1]);
        o[0] = 4.f * d[0] - 5.f * d[2] + d[4];
        o[1] = a + b, o[2] = a - b, o[3] = c + e, o[4] = c - e;
        o[5] = 4.f * d[1] - 5.f * d[3] + d[5];
    } else {
        o[0] = d[0] - d[2], o[1] = d[1] + d[2], o[2] = d[2] - d[1], o[3] = d[1] - d[3];
    }
}

template <int M>
inline void transform_output(const vec* m, vec* o) {  // Aᵀ m
    if constexpr (M == 4) {
        vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
        o[0] = m[0] + p + r, o[1] = q + 2.f * s, o[2] = p + 4.f * r, o[3] = q + 8.f * s + m[5];
    } else {
        o[0] = m[0] + m[1] + m[2], o[1] = m[1] - m[2] - m[3];
    }
}

// Tiles transformed together: so few that they stay near, so many that their weights are worth fetching.
constexpr int TILES_ROOM = 384 << 10;  // bytes, in the second-level cache
constexpr int UNIT = MOST_PIXELS[2] < 8 ? MOST_PIXELS[2] : 1;  // few registers: whole register tiles
inline int tiles_at_once(int M, int K) {
    if (K <= 16) return round_up(16, UNIT);  // in the first-level cache
    const int most = TILES_ROOM / ((M + 2) * (M + 2) * K * static_cast<int>(sizeof(float)));
    return round_up(most < 8 ? 8 : most > 56 ? 56 : most, UNIT);
}
inline size_t winograd_work(int M, int K) { return static_cast<size_t>((M + 2) * (M + 2)) * (K + 2 * L) * tiles_at_once(M, K); }

// padded: `images` of PH×PW pixels of K channels (a multiple of L), `step` apart; out: `images` of (M·TH)×OW pixels of C channels, of which
// [c0, c1) (multiples of L) are made. u: by blocks of channels, ((M+2)², K, block). work: winograd_work floats.
template <int M>
inline void winograd(const float* padded, int images, int PH, int PW, int K, int step, const float* u, float* out, int OW, int TH, int TW, int C, int c0, int c1, bool add, float* work) {
    constexpr int N = M + 2;
    const int T1 = TH * TW, all = images * T1, rounds = (all + tiles_at_once(M, K) - 1) / tiles_at_once(M, K), block = round_up((all + rounds - 1) / rounds, UNIT);
    float *tiles = work, *products = work + static_cast<size_t>(N * N) * block * K;
    const ptrdiff_t one = 0;
    for (int first = 0; first < all; first += block) {
        const int T = all - first < block ? all - first : block;
        for (int t = 0; t < T; t++) {
            const int at = first + t;
            const float* from = padded + (static_cast<size_t>(at / T1) * PH * PW + (at % T1 / TW * M) * PW + at % TW * M) * step;
            for (int c = 0; c < K; c += L) {
                vec rows[N][N], line[N], o[N];
                for (int i = 0; i < N; i++) {
                    for (int j = 0; j < N; j++) line[j] = load(from + (i * PW + j) * step + c);
                    transform_input<M>(line, rows[i]);
                }
                for (int j = 0; j < N; j++) {
                    for (int i = 0; i < N; i++) line[i] = rows[i][j];
                    transform_input<M>(line, o);
                    for (int i = 0; i < N; i++) store(tiles + (static_cast<size_t>(i * N + j) * T + t) * K + c, o[i]);
                }
            }
        }
        blocks(c0, c1, [&](int c, int V) {
            const int width = V * L, most = panel_rows(K, 1, V);
            Product product{V, K, width, &one, 1, 0, nullptr, 0, false};
            const Cut cut = cut_pixels(V, K, T);
            for (int f = 0; f < N * N; f++)
                for (int k = 0; k < K; k += most) {
                    product.K = K - k < most ? K - k : most, product.add = k > 0;
                    product.w = u + static_cast<size_t>(c) * N * N * K + (static_cast<size_t>(f) * K + k) * width;
                    multiply(product, cut, tiles + static_cast<size_t>(f) * T * K + k, products + static_cast<size_t>(f) * T * width);
                }
            for (int t = 0; t < T; t++) {
                const int at = first + t;
                float* to = out + (static_cast<size_t>(at / T1) * M * TH * OW + (at % T1 / TW * M) * OW + at % TW * M) * C + c;
                for (int v = 0; v < width; v += L) {
                    vec rows[M][N], line[N], o[M];
                    for (int j = 0; j < N; j++) {
                        for (int i = 0; i < N; i++) line[i] = load(products + (static_cast<size_t>(i * N + j) * T + t) * width + v);
                        transform_output<M>(line, o);
                        for (int i = 0; i < M; i++) rows[i][j] = o[i];
                    }
                    for (int i = 0; i < M; i++) {
                        transform_output<M>(rows[i], o);
                        for (int j = 0; j < M; j++) {
                            float* p = to + (i * OW + j) * C + v;
                            store(p, add ? load(p) + o[j] : o[j]);
                        }
                    }
                }
            }
        });
    }
}
