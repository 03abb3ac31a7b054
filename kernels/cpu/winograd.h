// Winograd F(M×M, 3×3), stride 1, for M = 4 and 2: a quarter, or four ninths, of the products (Lavin, Gray 2016).
// The weight's transform was made once: the weights are frozen.
#pragma once
#include "base.h"

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

// Tiles transformed, multiplied and transformed back together: few enough that they stay in the first-level cache.
inline int tiles_at_once(int K, int C) { return K + C <= 32 ? 16 : 8; }
inline size_t winograd_work(int M, int K, int C) { return static_cast<size_t>((M + 2) * (M + 2)) * (K + C) * tiles_at_once(K, C); }

// padded: `images` of PH×PW pixels of K channels (a multiple of L); out: `images` of (M·TH)×OW pixels of C channels (a multiple of L).
// u: by blocks of channels, ((M+2)², K, block). work: winograd_work floats.
template <int M>
inline void winograd(const float* padded, int images, int PH, int PW, int K, const float* u, float* out, int OW, int TH, int TW, int C, bool add, float* work) {
    constexpr int N = M + 2;
    const int T1 = TH * TW, all = images * T1, block = tiles_at_once(K, C);
    float *tiles = work, *products = work + static_cast<size_t>(N * N) * block * K;
    const Tap one = {0, 0};
    for (int first = 0; first < all; first += block) {
        const int T = all - first < block ? all - first : block;
        for (int t = 0; t < T; t++) {
            const int at = first + t;
            const float* from = padded + (static_cast<size_t>(at / T1) * PH * PW + (at % T1 / TW * M) * PW + at % TW * M) * K;
            for (int c = 0; c < K; c += L) {
                vec rows[N][N], line[N], o[N];
                for (int i = 0; i < N; i++) {
                    for (int j = 0; j < N; j++) line[j] = load(from + (i * PW + j) * K + c);
                    transform_input<M>(line, rows[i]);
                }
                for (int j = 0; j < N; j++) {
                    for (int i = 0; i < N; i++) line[i] = rows[i][j];
                    transform_input<M>(line, o);
                    for (int i = 0; i < N; i++) store(tiles + (static_cast<size_t>(i * N + j) * T + t) * K + c, o[i]);
                }
            }
        }
        for (int f = 0; f < N * N; f++) {
            const float* a = tiles + static_cast<size_t>(f) * T * K;
            float* b = products + static_cast<size_t>(f) * T * C;
            blocks(C, [&](int c, auto V) {
                const float* w = u + (static_cast<size_t>(c) * N * N + f * V() * L) * K;
                pixels<V(), PIXELS<V()>>(a, K, &one, 1, K, w, b + c, C, T, false);
            });
        }
        for (int t = 0; t < T; t++) {
            const int at = first + t;
            float* to = out + (static_cast<size_t>(at / T1) * M * TH * OW + (at % T1 / TW * M) * OW + at % TW * M) * C;
            for (int c = 0; c < C; c += L) {
                vec rows[M][N], line[N], o[M];
                for (int j = 0; j < N; j++) {
                    for (int i = 0; i < N; i++) line[i] = load(products + (static_cast<size_t>(i * N + j) * T + t) * C + c);
                    transform_output<M>(line, o);
                    for (int i = 0; i < M; i++) rows[i][j] = o[i];
                }
                for (int i = 0; i < M; i++) {
                    transform_output<M>(rows[i], o);
                    for (int j = 0; j < M; j++) {
                        float* p = to + (i * OW + j) * C + c;
                        store(p, add ? load(p) + o[j] : o[j]);
                    }
                }
            }
        }
    }
}
