// A block's weights, a few rows of K at a time: little enough that they stay in the first-level cache while
// every pixel of an item is multiplied by them.
//
// Packed weights are read where they lie: by blocks of output channels, (taps, K, block). A weight that was
// not packed is brought into that order panel by panel, each time; that costs what some tens of pixels do,
// and no memory. As PyTorch has it, it is (C, C_in, taps), or channels-last (C, taps, C_in): the input
// gradient's vectors are then whole where they lie.
#pragma once
#include "base.h"
#include <utility>
#include <vector>

constexpr int PANEL = 20 << 10;  // bytes
// Algorithms: 0 for the direct sum, M for Winograd's F(M×M, 3×3); RAW − 2·M or RAW_CHANNELS_LAST − 2·M for
// the same by a weight that was not packed, in either order.
constexpr int RAW = -1, RAW_CHANNELS_LAST = -2;
inline int transforms(int algorithm) { return algorithm >= 0 ? algorithm : (RAW - algorithm) / 2; }

// Rows of K at once, of all `taps`: a panel of V vectors; as even as can be, and whole vectors.
inline int panel_rows(int K, int taps, int V) {
    const int most = PANEL / (taps * V * L * static_cast<int>(sizeof(float)));
    if (most >= K) return K;
    const int step = most < L ? L : most / L * L, panels = (K + step - 1) / step;
    return round_up((K + panels - 1) / panels, L);
}

inline size_t panel_room(int K, int taps) {
    const int two = 2 * panel_rows(K, taps, 2), one = panel_rows(K, taps, 1);
    return static_cast<size_t>(two > one ? two : one) * taps * L;
}

template <int S, size_t... I>
inline void interleave(vec& a, vec& b,
                       std::index_sequence<I...>) {  // blocks of S lanes: a's odd ones for b's even ones
    const vec first = a, second = b;
#ifdef __clang__
    a = __builtin_shufflevector(first, second, (I & S ? L + I - S : I)...);
    b = __builtin_shufflevector(first, second, (I & S ? L + I : I + S)...);
#else
    a = __builtin_shuffle(first, second, veci{static_cast<int32_t>(I & S ? L + I - S : I)...});
    b = __builtin_shuffle(first, second, veci{static_cast<int32_t>(I & S ? L + I : I + S)...});
#endif
}

template <int S = 1>
inline void transpose(vec* m) {  // L rows of L
    if constexpr (S < L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; i++)
            if (!(i & S)) interleave<S>(m[i], m[i + S], std::make_index_sequence<L>{});
        transpose<2 * S>(m);
    }
}

// L rows of `count` floats, the first `rows` of them there, `step` apart: their columns to to(j, column).
// end: of all that may be read.
template <typename To>
inline void columns(const float* from, const float* end, ptrdiff_t step, int rows, int count, To to) {
    for (int j = 0; j < count; j += L) {
        const int here = count - j < L ? count - j : L;
        vec m[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; i++)
            m[i] = i >= rows                        ? vec{}
                   : from + i * step + j + L <= end ? load(from + i * step + j)
                                                    : load_some(from + i * step + j, here);
        transpose(m);
        for (int i = 0; i < here; i++) to(j + i, m[i]);
    }
}

// Of nine vectors of consecutive numbers, L groups of nine, makes the vector of every group's first, second,
// … Lane l of the t-th comes from vector s with L·s + l ≡ t (mod 9): from a vector that lies a distance on
// which depends on the lane, which is three or four blends; then the lanes are put in order.
struct Nines {
    static constexpr int inverse = L % 9 == 8 ? 8 : L % 9 == 7 ? 4 : 7;  // of L modulo 9
    static constexpr int distance(int lane) { return (9 - inverse) * lane % 9; }
    static constexpr bool any(int bit) {
        for (int l = 0; l < L; l++)
            if (distance(l) & bit) return true;
        return false;
    }
    template <int BIT, size_t... I>
    static vec blend(vec a, vec b, std::index_sequence<I...>) {  // b where the distance has the bit
#ifdef __clang__
        return __builtin_shufflevector(a, b, (distance(I) & BIT ? L + I : I)...);
#else
        return __builtin_shuffle(a, b, veci{static_cast<int32_t>(distance(I) & BIT ? L + I : I)...});
#endif
    }
    template <int T, size_t... I>
    static vec order(vec a, std::index_sequence<I...>) {
#ifdef __clang__
        return __builtin_shufflevector(a, a, ((9 * I + T) % L)...);
#else
        return __builtin_shuffle(a, veci{static_cast<int32_t>((9 * I + T) % L)...});
#endif
    }
    template <int BIT>
    static void turn(vec* v) {
        if constexpr (any(BIT)) {
            vec o[9];
#pragma GCC unroll 9
            for (int a = 0; a < 9; a++)
                o[a] = blend<BIT>(v[a], v[(a + BIT) % 9], std::make_index_sequence<L>{});
#pragma GCC unroll 9
            for (int a = 0; a < 9; a++) v[a] = o[a];
        }
    }
    template <size_t... T>
    static void apart(const vec* v, vec* o, std::index_sequence<T...>) {
        ((o[T] = order<T>(v[inverse * T % 9], std::make_index_sequence<L>{})), ...);
    }
};
inline void by_nines(const float* from, vec* o) {
    vec v[9];
#pragma GCC unroll 9
    for (int i = 0; i < 9; i++) v[i] = load(from + i * L);
    Nines::turn<1>(v), Nines::turn<2>(v), Nines::turn<4>(v), Nines::turn<8>(v);
    Nines::apart(v, o, std::make_index_sequence<9>{});
}

struct Weights {
    const float* at;
    int algorithm;   // whether it was packed
    int C, K, taps;  // output channels and K of this product; all taps

    // Rows [k, k + rows) of the block of V vectors from channel c on, of all taps; w_tap: rows from a tap to
    // the next. Forward: not packed, it is (C, K, taps) or (C, taps, K).
    const float* forward(int c, int V, int k, int rows, float* room, ptrdiff_t& w_tap) const {
        if (algorithm >= 0) return packed(c, V, k, w_tap);
        w_tap = rows;
        const float* end = at + static_cast<size_t>(C) * K * taps;
        const ptrdiff_t step = static_cast<ptrdiff_t>(K) * taps;
        for (int v = 0; v < V; v++) {
            const int c0 = c + v * L;
            if (algorithm == RAW)
                columns(at + c0 * step + static_cast<ptrdiff_t>(k) * taps, end, step, C - c0, rows * taps,
                        [&](int j, vec column) {
                            store(room + ((j % taps * rows + j / taps) * V + v) * L, column);
                        });
            for (int tap = 0; algorithm == RAW_CHANNELS_LAST && tap < taps; tap++)
                columns(at + c0 * step + static_cast<ptrdiff_t>(tap) * K + k, end, step, C - c0, rows,
                        [&](int j, vec column) { store(room + ((tap * rows + j) * V + v) * L, column); });
        }
        return room;
    }

    // Input gradient: not packed, it is (K, C, taps) or (K, taps, C); place: of each tap in the order in
    // which they are used.
    const float* backward(int c, int V, int k, int rows, const int* place, float* room,
                          ptrdiff_t& w_tap) const {
        if (algorithm >= 0) return packed(c, V, k, w_tap);
        w_tap = rows;
        for (int i = 0; i < rows; i++) {
            if (algorithm == RAW)
                ahead(at + (static_cast<size_t>(k + i + ROWS_AHEAD) * C + c) * taps, taps * V * L);
            for (int v = 0; v < V; v++) {
                const int c0 = c + v * L, there = C - c0 < L ? C - c0 : L;
                const float* from = at + static_cast<size_t>(k + i) * C * taps;
                float* to = room + (i * V + v) * L;
                if (taps == 1 || algorithm == RAW_CHANNELS_LAST)
                    for (int tap = 0; tap < taps; tap++) {
                        const float* line = from + static_cast<ptrdiff_t>(tap) * C + c0;
                        store(to + place[tap] * rows * V * L,
                              there == L ? load(line) : load_some(line, there));
                    }
                else if (taps == 9 && there == L) {
                    vec w[9];
                    by_nines(from + static_cast<ptrdiff_t>(c0) * 9, w);
                    for (int tap = 0; tap < 9; tap++) store(to + place[tap] * rows * V * L, w[tap]);
                } else
                    columns(from + static_cast<ptrdiff_t>(c0) * taps, at + static_cast<size_t>(C) * K * taps,
                            taps, there, taps,
                            [&](int tap, vec column) { store(to + place[tap] * rows * V * L, column); });
            }
        }
        return room;
    }

  private:
    const float* packed(int c, int V, int k, ptrdiff_t& w_tap) const {
        w_tap = K;
        return at + static_cast<size_t>(c) * taps * K + static_cast<size_t>(k) * V * L;
    }
};
