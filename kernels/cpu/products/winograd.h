// Winograd F(M×M, 3×3), stride 1, for M = 4 and 2: a quarter, or four ninths, of the products (Lavin, Gray
// 2016).
//
// The weights are frozen: their transform was made once, or is made anew for every place
// (products/transform.h).
#pragma once
#include "base.h"
#include "products/multiply.h"
#include "products/transform.h"

template <int M, int N>
inline void transform_input(const vec* d, vec* o) {  // Bᵀ d
    if constexpr (N == 3) {
        o[0] = d[0] + d[1], o[1] = d[1], o[2] = d[0];
    } else if constexpr (M == 4) {
        vec a = d[4] - 4.f * d[2], b = d[3] - 4.f * d[1], c = d[4] - d[2], e = 2.f * (d[3] - d[1]);
        o[0] = 4.f * d[0] - 5.f * d[2] + d[4];
        o[1] = a + b, o[2] = a - b, o[3] = c + e, o[4] = c - e;
        o[5] = 4.f * d[1] - 5.f * d[3] + d[5];
    } else {
        o[0] = d[0] - d[2], o[1] = d[1] + d[2], o[2] = d[2] - d[1], o[3] = d[1] - d[3];
    }
}

template <int M, int N>
inline void transform_output(const vec* m, vec* o) {  // Aᵀ m
    if constexpr (N == 3) {
        o[0] = m[0] + m[1], o[1] = m[0] + m[2];
    } else if constexpr (M == 4) {
        vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
        o[0] = m[0] + p + r, o[1] = q + 2.f * s, o[2] = p + 4.f * r, o[3] = q + 8.f * s + m[5];
    } else {
        o[0] = m[0] + m[1] + m[2], o[1] = m[1] - m[2] - m[3];
    }
}

// How a convolution is carried out: M, N values a tile and direction, and whether the weight is as it was.
struct Winograd {
    int M, N;
    bool raw;

    // Tiles transformed together: so few that they stay near, so many that their weights are worth fetching,
    // or transforming.
    static constexpr int UNIT =
        MOST_PIXELS[2] < 8 ? MOST_PIXELS[2] : 1;  // few registers: whole register tiles
    int tiles_at_once(int K) const {
        const int one = N * N * K * static_cast<int>(sizeof(float)), least = raw ? 16 : 8,
                  room = (raw ? 1 << 20 : 384 << 10) / one;
        if (K <= 16 && !raw) return round_up(16, UNIT);  // in the first-level cache
        return round_up(room < least ? least : room > 56 ? 56 : room, UNIT);
    }
    // Rows of K that are transformed together: whole vectors, as even as can be.
    int rows(int K) const {
        if (!raw) return K;
        const int most = PANEL_ROOM / (N * N * 2 * L * static_cast<int>(sizeof(float))) / L * L,
                  step = most < L ? L : most, panels = (K + step - 1) / step;
        return round_up((K + panels - 1) / panels, L);
    }
    // Floats from one of N² to the next of so many tiles: an odd number of lines, which lie in different sets
    // of the first-level cache.
    static ptrdiff_t plane(int T, int values) { return round_up(T * values, 2 * LINE) + LINE; }
    size_t work(int K) const {
        const int T = tiles_at_once(K), chunk = rows(K), chunks = (K + chunk - 1) / chunk;
        const size_t all = static_cast<size_t>(N) * N * (chunks * plane(T, chunk) + plane(T, 2 * L));
        return raw ? all + N * N * Transform::panel_step(rows(K), 2) + 9 * L * L : all;
    }

  private:
    static constexpr int PANEL_ROOM = 160 << 10;  // bytes, of the second-level cache
};

// Of a convolution that algorithm M or a negative one asks for, in images of height × width.
inline Winograd winograd_of(int algorithm, int height, int width) {
    const int M = transforms(algorithm);
    const bool raw = algorithm < 0;
    return {M, raw && M == 2 && height <= 2 && width <= 2 ? 3 : M + 2, raw};
}

// What a call of winograd reads and writes. padded: `images` of PH×PW pixels of K channels (a multiple of L),
// `step` apart; out: `images` of (M·TH)×OW pixels of C channels, of which [c0, c1) (multiples of L) are made.
// work: Winograd::work floats; where all tiles are transformed at once, a call that is not `fresh` finds
// those of the last.
struct Tiles {
    const float* padded;
    int images, PH, PW, K, step;
    Transform weights;
    float* out;
    int OW, TH, TW, C, c0, c1;
    bool add, fresh;
    float* work;
};

template <int M, int N, bool RAW>
inline void winograd(const Winograd& way, const Tiles& a) {
    constexpr int D = N == 3 ? 2 : N,
                  OFF = N == 3 ? 1 : 0;  // values that a tile has; those left out are zero
    const int K = a.K, T1 = a.TH * a.TW, all = a.images * T1, once = way.tiles_at_once(K),
              rounds = (all + once - 1) / once;
    const int block = round_up((all + rounds - 1) / rounds, Winograd::UNIT), chunk = way.rows(K),
              chunks = (K + chunk - 1) / chunk;
    // tiles: by chunks of K, (N², T, chunk)
    float *tiles = a.work, *products = tiles + N * N * chunks * Winograd::plane(block, chunk);
    float *panel = products + N * N * Winograd::plane(block, 2 * L),
          *line = panel + N * N * Transform::panel_step(chunk, 2);
    const ptrdiff_t one = 0;
    for (int first = 0; first < all; first += block) {
        const int T = all - first < block ? all - first : block;
        for (int t = 0; t < T && (a.fresh || rounds > 1); t++) {
            const int at = first + t;
            const float* from = a.padded + (static_cast<size_t>(at / T1) * a.PH * a.PW +
                                            (at % T1 / a.TW * M + OFF) * a.PW + at % a.TW * M + OFF) *
                                               a.step;
            for (int c = 0; c < K; c += L) {
                const int part = c / chunk, k0 = part * chunk, here = K - k0 < chunk ? K - k0 : chunk;
                const ptrdiff_t plane = Winograd::plane(T, here);
                float* to = tiles + N * N * part * Winograd::plane(T, chunk) + t * here + c - k0;
                vec rows[N][D], line[D], o[N];
                for (int i = 0; i < D; i++) {
                    for (int j = 0; j < D; j++) line[j] = load(from + (j * a.PW + i) * a.step + c);
                    transform_input<M, N>(line, o);
                    for (int j = 0; j < N; j++) rows[j][i] = o[j];
                }
                for (int i = 0; i < N; i++) {
                    transform_input<M, N>(rows[i], o);
                    for (int j = 0; j < N; j++) {
                        const float by = scale<M, N>(i) * scale<M, N>(j);
                        store(to + (i * N + j) * plane, RAW ? by * o[j] : o[j]);
                    }
                }
            }
        }
        blocks(a.c0, a.c1, [&](int c, int V) {
            const int width = V * L,
                      most = K > 128 ? 64 : panel_rows(K, 1, V);  // long sums in pieces: they round off less
            const ptrdiff_t made = Winograd::plane(T, width);
            for (int part = 0; part < chunks; part++) {
                const int k0 = part * chunk, here = K - k0 < chunk ? K - k0 : chunk;
                Product product{V, here, width, &one, 1, 0, nullptr, 0, false};
                const Cut cut = cut_pixels(V, here, T);
                const float* in = tiles + N * N * part * Winograd::plane(T, chunk);
                if (RAW) a.weights.panel<M, N>(c, V, k0, here, panel, line);
                const float* w = RAW ? panel : a.weights.at + static_cast<size_t>(c) * N * N * K;
                const ptrdiff_t w_step =
                    RAW ? Transform::panel_step(here, V) : static_cast<ptrdiff_t>(K) * width;
                for (int f = 0; f < N * N; f++)
                    for (int k = 0; k < here; k += most) {
                        product.K = here - k < most ? here - k : most, product.add = k0 + k > 0;
                        product.w = w + f * w_step + static_cast<ptrdiff_t>(k) * width;
                        multiply(product, cut, in + f * Winograd::plane(T, here) + k, products + f * made);
                    }
            }
            for (int t = 0; t < T; t++) {
                const int at = first + t;
                float* to = a.out +
                            (static_cast<size_t>(at / T1) * M * a.TH * a.OW + (at % T1 / a.TW * M) * a.OW +
                             at % a.TW * M) *
                                a.C +
                            c;
                for (int v = 0; v < width; v += L) {
                    vec rows[M][N], line[N], o[M];
                    for (int j = 0; j < N; j++) {
                        for (int i = 0; i < N; i++)
                            line[i] = load(products + (i * N + j) * made + t * width + v);
                        transform_output<M, N>(line, o);
                        for (int i = 0; i < M; i++) rows[i][j] = o[i];
                    }
                    for (int i = 0; i < M; i++) {
                        transform_output<M, N>(rows[i], o);
                        for (int j = 0; j < M; j++) {
                            float* p = to + (i * a.OW + j) * a.C + v;
                            store(p, a.add ? load(p) + o[j] : o[j]);
                        }
                    }
                }
            }
        });
    }
}

inline void winograd(const Winograd& way, const Tiles& a) {
    if (way.N == 3) return winograd<2, 3, true>(way, a);
    if (way.M == 2) return (way.raw ? winograd<2, 4, true> : winograd<2, 4, false>)(way, a);
    (way.raw ? winograd<4, 6, true> : winograd<4, 6, false>)(way, a);
}
