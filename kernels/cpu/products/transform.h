// A weight's Winograd transform G w Gᵀ: made once, where memory allows, or here, panel by panel, each time.
//
// A thread that has a range of output channels transforms each of their weights once a pass: some tens of
// operations a pair of channels, beside N² products for every tile. G is without its factors, which the
// input's transform then has (scale).
#pragma once
#include "base.h"
#include "products/weights.h"

// An image of one tile and zeros around it, of 2×2 pixels, takes N = 3 instead of 4: p = g1·(d0 + d1),
// q = (g2 − g1)·d1, r = (g0 − g1)·d0 make p + q and p + r.
template <int M, int N>
inline void transform_weight(vec a, vec b, vec c, vec* o) {  // G (a, b, c)
    if constexpr (N == 3) {
        o[0] = b, o[1] = c - b, o[2] = a - b;
    } else if constexpr (M == 2) {
        const vec s = a + c;
        o[0] = a, o[1] = s + b, o[2] = s - b, o[3] = c;
    } else {
        const vec s = a + c, t = a + 4.f * c;
        o[0] = a, o[1] = s + b, o[2] = s - b, o[3] = t + 2.f * b, o[4] = t - 2.f * b, o[5] = c;
    }
}
// What transform_weight left out, by row.
template <int M, int N>
constexpr float scale(int i) {
    if (N == 3) return 1.f;
    if (M == 2) return i == 1 || i == 2 ? 1 / 2.f : 1.f;
    return i == 0 ? 1 / 4.f : i == 5 ? 1.f : i < 3 ? -1 / 6.f : 1 / 24.f;
}

// w: nine vectors, tap by tap; to: N² of them, `step` floats apart. turned: the taps in reverse.
template <int M, int N>
inline void transform_taps(const vec* w, bool turned, float* to, ptrdiff_t step) {
    vec rows[N][3], o[N];
#pragma GCC unroll 3
    for (int j = 0; j < 3; j++) {
        transform_weight<M, N>(w[turned ? 8 - j : j], w[turned ? 5 - j : 3 + j], w[turned ? 2 - j : 6 + j],
                               o);
#pragma GCC unroll 6
        for (int i = 0; i < N; i++) rows[i][j] = o[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
        transform_weight<M, N>(rows[i][0], rows[i][1], rows[i][2], o);
#pragma GCC unroll 6
        for (int j = 0; j < N; j++) store(to + (i * N + j) * step, o[j]);
    }
}

// The weights of a 3×3 convolution: transformed, by blocks of output channels, (N², K, block), or as they
// are, (C, K, 9) or (C, 9, K).
struct Transform {
    const float* at;
    int algorithm;  // whether it was transformed
    bool backward;  // the input gradient's: as they are (K, C, 9) or (K, 9, C), and turned
    int C, K;       // as there are

    bool made() const { return algorithm > 0; }
    // Floats from one of N² to the next of a panel of `rows`: lines of different sets of the first-level
    // cache.
    static ptrdiff_t panel_step(int rows, int V) { return static_cast<ptrdiff_t>(rows) * V * L + 16; }

    // Rows [k, k + rows) of the block of V vectors from channel c on into `room`; line: 9·L·L floats.
    template <int M, int N>
    void panel(int c, int V, int k, int rows, float* room, float* line) const {
        const ptrdiff_t step = panel_step(rows, V);
        const int there = K - k < rows ? K - k : rows;
        for (int i = 0; backward && i < there; i++) {  // a row's vectors lie together
            if (!channels_last())
                ahead(at + (static_cast<size_t>(k + i + ROWS_AHEAD) * C + c) * 9, 9 * V * L);
            for (int v = 0; v < V; v++) {
                vec w[9];
                row(c + v * L, k + i, w);
                transform_taps<M, N>(w, true, room + (i * V + v) * L, step);
            }
        }
        for (int v = 0; !backward && v < V; v++)
            for (int i = 0; i < there; i += L) {
                const int some = there - i < L ? there - i : L;
                lines(c + v * L, k + i, some, line);
                for (int j = 0; j < some; j++) {
                    const vec* w = (const vec*)(line + j * 9 * L);
                    transform_taps<M, N>(w, false, room + ((i + j) * V + v) * L, step);
                }
            }
        for (int v = 0; v < V; v++)
            for (int i = there; i < rows; i++)
                for (int f = 0; f < N * N; f++) store(room + f * step + (i * V + v) * L, vec{});
    }

  private:
    bool channels_last() const { return algorithm % 2 == 0; }

    void lines(int c, int k, int rows, float* to) const {  // (rows, 9, L)
        const float* end = at + static_cast<size_t>(C) * K * 9;
        const ptrdiff_t step = static_cast<ptrdiff_t>(K) * 9;
        if (!channels_last())
            columns(at + c * step + static_cast<ptrdiff_t>(k) * 9, end, step, C - c, rows * 9,
                    [&](int j, vec column) { store(to + j * L, column); });
        else
            for (int tap = 0; tap < 9; tap++)
                columns(at + c * step + static_cast<ptrdiff_t>(tap) * K + k, end, step, C - c, rows,
                        [&](int j, vec column) { store(to + (j * 9 + tap) * L, column); });
    }

    void row(int c, int k, vec* w) const {
        const int there = C - c < L ? C - c : L;
        const float* from = at + static_cast<size_t>(k) * C * 9;
        if (channels_last()) {
            from += c;
            for (int tap = 0; tap < 9; tap++, from += C)
                w[tap] = there == L ? load(from) : load_some(from, there);
            return;
        }
        float some[9 * L] = {};
        from += static_cast<ptrdiff_t>(c) * 9;
        if (there < L) from = static_cast<const float*>(memcpy(some, from, sizeof(float) * 9 * there));
        by_nines(from, w);
    }
};
