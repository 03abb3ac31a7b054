// Winograd F(4×4, 3×3), stride 1: four times fewer products (Lavin, Gray 2016). The weight's transform (36, K, C) was made once.
#pragma once
#include "base.h"

inline void transform_input(const vec d[6], vec o[6]) {  // Bᵀ d
    vec a = d[4] - 4.f * d[2], b = d[3] - 4.f * d[1], c = d[4] - d[2], e = 2.f * (d[3] - d[1]);
    o[0] = 4.f * d[0] - 5.f * d[2] + d[4];
    o[1] = a + b, o[2] = a - b, o[3] = c + e, o[4] = c - e;
    o[5] = 4.f * d[1] - 5.f * d[3] + d[5];
}

inline void transform_output(const vec m[6], vec o[4]) {  // Aᵀ m
    vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    o[0] = m[0] + p + r, o[1] = q + 2.f * s, o[2] = p + 4.f * r, o[3] = q + 8.f * s + m[5];
}

// Tiles transformed, multiplied and transformed back together: few enough that they stay in the first-level cache.
inline int tiles_at_once(int K, int C) { return K + C <= 32 ? 16 : 8; }

// padded: `images` of PH×PW pixels of K channels (a multiple of L); out: `images` of (4·TH)×OW pixels of C channels (a multiple of L).
// u: by blocks of V·L channels (36, K, V·L). work: 36·(K + C)·tiles_at_once floats.
inline void winograd(const float* padded, int images, int PH, int PW, int K, const float* u, float* out, int OW, int TH, int TW, int C, bool add, float* work) {
    const int T1 = TH * TW, all = images * T1, BLOCK = tiles_at_once(K, C);
    float *tiles = work, *products = work + 36 * BLOCK * K;
    for (int first = 0; first < all; first += BLOCK) {
        const int T = all - first < BLOCK ? all - first : BLOCK;
        for (int t = 0; t < T; t++) {
            const int at = first + t;
            const float* from = padded + (static_cast<size_t>(at / T1) * PH * PW + (at % T1 / TW * 4) * PW + at % TW * 4) * K;
            for (int c = 0; c < K; c += L) {
                vec rows[6][6], line[6], o[6];
                for (int i = 0; i < 6; i++) {
                    for (int j = 0; j < 6; j++) line[j] = load(from + (i * PW + j) * K + c);
                    transform_input(line, rows[i]);
                }
                for (int j = 0; j < 6; j++) {
                    for (int i = 0; i < 6; i++) line[i] = rows[i][j];
                    transform_input(line, o);
                    for (int i = 0; i < 6; i++) store(tiles + (static_cast<size_t>(i * 6 + j) * T + t) * K + c, o[i]);
                }
            }
        }
        const Tap one = {0, 0};
        for (int f = 0; f < 36; f++) {
            const float* a = tiles + static_cast<size_t>(f) * T * K;
            float* b = products + static_cast<size_t>(f) * T * C;
            blocks(C, [&](int c, auto V) { line<V(), PIXELS<V()>>(a, K, &one, 1, K, u + (static_cast<size_t>(c) * 36 + f * V() * L) * K, b + c, C, T, false); });
        }
        for (int t = 0; t < T; t++) {
            const int at = first + t;
            float* to = out + (static_cast<size_t>(at / T1) * 4 * TH * OW + (at % T1 / TW * 4) * OW + at % TW * 4) * C;
            for (int c = 0; c < C; c += L) {
                vec rows[4][6], line[6], o[4];
                for (int j = 0; j < 6; j++) {
                    for (int i = 0; i < 6; i++) line[i] = load(products + (static_cast<size_t>(i * 6 + j) * T + t) * C + c);
                    transform_output(line, o);
                    for (int i = 0; i < 4; i++) rows[i][j] = o[i];
                }
                for (int i = 0; i < 4; i++) {
                    transform_output(rows[i], o);
                    for (int j = 0; j < 4; j++) {
                        float* p = to + (i * OW + j) * C + c;
                        store(p, add ? load(p) + o[j] : o[j]);
                    }
                }
            }
        }
    }
}
