// What every CPU kernel of fastbn shares: the vector, what is stored, the mask's bits.
//
// GCC vector extensions, no intrinsics: the same source serves AVX-512, AVX2 and NEON. Activations are
// channels-last, (N, H, W, C), stored as float32 or as bfloat16; arithmetic is float32's. Work is cut into
// items (items.h) that stay in the core's L2 from load to store; each leaves its own partial sums, merged in
// the items' order, so results have the same bits at any thread count.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#ifdef __AVX__
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

// The upper half of a float32, to the nearest, ties to even. Only where activations and gradients lie: no sum
// is taken in it.
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

// The first k ≤ L numbers, zero beyond; and storing only those. Whole vectors have a type of their own, so
// their loops are plain.
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

constexpr int LINE = 16;  // floats of a line of the caches
// Asks for what the same loop will read a row later: its pieces lie too far apart for the processor to guess.
template <typename S>
inline void ahead(const S* p) { __builtin_prefetch(p, 0, 2); }
inline void ahead(const float* p, int count) {
    for (int i = 0; i < count; i += LINE) ahead(p + i);
}
constexpr int ROWS_AHEAD = 4;  // of a weight as PyTorch has it: a block's part of a row is read, the rest skipped

// f(c, how many channels from c on), from c up to C by vectors.
template <typename F>
inline void across(int c, int C, F f) {
    for (; c + L <= C; c += L) f(c, Whole{});
    if (c < C) f(c, C - c);
}

// A ReLU's mask: a bit an element, set where it was open; whole bytes a vector, mask_bytes(C) of them a
// pixel.
constexpr int VECTOR_BYTES = (L + 7) / 8;
inline int mask_bytes(int C) { return (C + L - 1) / L * VECTOR_BYTES; }
inline void store_mask(uint8_t* p, vec z) {
    uint32_t bits = 0;
#ifdef __AVX512F__
    bits = _mm512_cmp_ps_mask((__m512)z, _mm512_setzero_ps(), _CMP_NLE_UQ);
#elif defined(__AVX__)
    bits = static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps((__m256)z, _mm256_setzero_ps(), _CMP_NLE_UQ)));
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

// Output channels go in blocks of two vectors, the last of one: packed weights are laid out so. f(c,
// vectors), from c up to C.
template <typename F>
inline void blocks(int c, int C, F f) {
    for (; c + 2 * L <= C; c += 2 * L) f(c, 2);
    if (c < C) f(c, 1);
}

// Elements from a pixel of K channels to the next, where it is formed: not a large power of two, at which the
// pixels of a tile would meet in a few sets of the first-level cache.
inline int pixel_step(int K) { return K % 256 ? K : K + 16; }

inline float* floats(size_t n) {
    return static_cast<float*>(aligned_alloc(64, (sizeof(float) * n + 63) / 64 * 64));
}
