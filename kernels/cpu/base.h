// What every CPU kernel of fastbn shares: the vector, the convolution's geometry, the register tile.
//
// GCC vector extensions, no intrinsics: the same source serves AVX-512, AVX2 and NEON. Activations are channels-last,
// (N, H, W, C), stored as float32 or as bfloat16; arithmetic is float32's. Work is cut into items (items.h) that stay in the core's L2 from load to store; each leaves its own
// partial sums, merged in the items' order, so results have the same bits at any thread count.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int L = 16;
#elif defined(__AVX2__) || defined(__AVX__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif
typedef float vec __attribute__((vector_size(4 * L), aligned(4)));
typedef int32_t veci __attribute__((vector_size(4 * L), aligned(4)));

inline vec load(const float* p) { return *(const vec*)p; }
inline void store(float* p, vec v) { *(vec*)p = v; }
inline vec splat(float x) { return vec{} + x; }
inline vec relu(vec t) { return t < 0.f ? vec{} : t; }  // a NaN is not below zero: it stays

// The upper half of a float32, to the nearest, ties to even. Only where activations and gradients lie: no sum is taken in it.
struct bfloat16 {
    uint16_t bits;
};
typedef uint16_t vech __attribute__((vector_size(2 * L), aligned(2)));
typedef uint32_t vecu __attribute__((vector_size(4 * L), aligned(4)));
inline vec load(const bfloat16* p) { return (vec)(__builtin_convertvector(*(const vech*)p, vecu) << 16); }
inline void store(bfloat16* p, vec v) {
#ifdef __AVX512BF16__
    *(vech*)p = (vech)_mm512_cvtneps_pbh((__m512)v);
#else
    const vecu bits = (vecu)v, nearest = bits + 0x7fff + (bits >> 16 & 1);
    *(vech*)p = __builtin_convertvector((v == v ? nearest : bits | 0x400000) >> 16, vech);
#endif
}
// As it will be read again.
inline vec as_stored(const float*, vec v) { return v; }
inline vec as_stored(const bfloat16*, vec v) {
    bfloat16 there[L];
    store(there, v);
    return load(there);
}

// The first k ≤ L numbers, zero beyond; and storing only those. Whole vectors have a type of their own, so their loops are plain.
using Whole = std::integral_constant<int, L>;
template <typename S>
inline vec load_some(const S* p, Whole) { return load(p); }
template <typename S>
inline vec load_some(const S* p, int k) {
    S here[L] = {};
    memcpy(here, p, sizeof(S) * k);
    return load(here);
}
template <typename S>
inline void store_some(S* p, vec v, Whole) { store(p, v); }
template <typename S>
inline void store_some(S* p, vec v, int k) {
    S here[L];
    store(here, v);
    memcpy(p, here, sizeof(S) * k);
}

// f(c, how many channels from c on), over C channels by vectors.
template <typename F>
inline void across(int C, F f) {
    int c = 0;
    for (; c + L <= C; c += L) f(c, Whole{});
    if (c < C) f(c, C - c);
}

// A ReLU's mask: a bit an element, set where it was open; whole bytes a vector, mask_bytes(C) of them a pixel.
constexpr int VECTOR_BYTES = (L + 7) / 8;
inline int mask_bytes(int C) { return (C + L - 1) / L * VECTOR_BYTES; }
inline void store_mask(uint8_t* p, vec z) {
    uint32_t bits = 0;
#ifdef __AVX512F__
    bits = _mm512_cmp_ps_mask((__m512)z, _mm512_setzero_ps(), _CMP_NLE_UQ);
#else
    for (int l = 0; l < L; l++) bits |= static_cast<uint32_t>(!(z[l] <= 0.f)) << l;
#endif
    memcpy(p, &bits, VECTOR_BYTES);
}
inline vec masked(vec t, const uint8_t* p) {
    uint32_t bits = 0;
    memcpy(&bits, p, VECTOR_BYTES);
#ifdef __AVX512F__
    return (vec)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)t);
#endif
    veci lane;
    for (int l = 0; l < L; l++) lane[l] = 1 << l;
    return ((veci{} + static_cast<int32_t>(bits)) & lane) != 0 ? t : vec{};
}

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

struct Tap {
    ptrdiff_t in;      // elements from the first pixel read to this tap's
    ptrdiff_t weight;  // rows of the block from its first weight to this tap's
};

// out[p] (+)= Σ_taps Σ_k in[p·in_step + tap.in + k] · w[tap.weight + k][·], for P pixels and V vectors of channels.
// STEP is in_step where that is known to the compiler: the pixels' addresses are then constants off one register; else 0.
template <int P, int V, int STEP>
inline void tile(const float* in, ptrdiff_t any_step, const Tap* taps, int n_taps, int K, const float* w, float* out, ptrdiff_t out_step, bool add) {
    const ptrdiff_t in_step = STEP ? STEP : any_step;
    vec acc[P][V];
    for (int p = 0; p < P; p++)
        for (int v = 0; v < V; v++) acc[p][v] = add ? load(out + p * out_step + v * L) : vec{};
    for (int t = 0; t < n_taps; t++) {
        const float* a = in + taps[t].in;
        const float* b = w + taps[t].weight * V * L;
        for (int k = 0; k < K; k++, a++, b += V * L) {
            vec row[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) row[v] = load(b + v * L);
#pragma GCC unroll 16
            for (int p = 0; p < P; p++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) acc[p][v] += a[p * in_step] * row[v];
        }
    }
    for (int p = 0; p < P; p++)
        for (int v = 0; v < V; v++) store(out + p * out_step + v * L, acc[p][v]);
}

template <int V, int P, int STEP>
inline void pixels_at(const float* in, ptrdiff_t in_step, const Tap* taps, int n_taps, int K, const float* w, float* out, ptrdiff_t out_step, int n, bool add) {
    int p = 0;
    for (; p + P <= n; p += P) tile<P, V, STEP>(in + p * in_step, in_step, taps, n_taps, K, w, out + p * out_step, out_step, add);
    if constexpr (P > 1) pixels_at<V, P / 2, STEP>(in + p * in_step, in_step, taps, n_taps, K, w, out + p * out_step, out_step, n - p, add);
}

// n pixels of a row, P at a time and the rest by halves.
template <int V, int P>
inline void pixels(const float* in, ptrdiff_t in_step, const Tap* taps, int n_taps, int K, const float* w, float* out, ptrdiff_t out_step, int n, bool add) {
    auto run = in_step == 16 ? pixels_at<V, P, 16> : pixels_at<V, P, 0>;  // for more channels the constants gain nothing
    run(in, in_step, taps, n_taps, K, w, out, out_step, n, add);
}

// Output channels go in blocks of two vectors, the last of one: packed weights are laid out so.
template <int V>
constexpr int PIXELS = (L == 16 ? 16 : 8) / V;

template <typename F>
inline void blocks(int C, F f) {
    int c = 0;
    for (; c + 2 * L <= C; c += 2 * L) f(c, std::integral_constant<int, 2>{});
    if (c < C) f(c, std::integral_constant<int, 1>{});
}

inline float* floats(size_t n) { return static_cast<float*>(aligned_alloc(64, (sizeof(float) * n + 63) / 64 * 64)); }
