// What a convolution reads: z = [relu](scale·y + shift [+ rscale·y_r + rshift | + residual]), formed as it is loaded.
#pragma once
#include "base.h"

extern "C" struct Source {
    int relu, half;               // half: y, y_r, residual and z are bfloat16, else float32
    const void* y;                // (N, H, W, C)
    const float *scale, *shift;   // (C,); null: y is z itself
    const void* y_r;              // a projection's raw output, or null
    const float *rscale, *rshift;
    const void* residual;         // (N, H, W, C), or null
    void* z;                      // where to write z, or null
    uint8_t* mask;                // where to write the ReLU's mask, or null
};

// Forms `pixels` pixels of C channels from pixel `first` on, into `to` (K ≥ C floats a pixel) and, if asked, z and its mask.
// One simple pass a term: a row stays in the first-level cache. S: what activations are stored in.
template <typename S>
inline void form(const Source& s, size_t first, int pixels, int C, float* to, int K) {
    const size_t at = first * C;
    across(0, C, [&](int c, auto k) {
        const S* y = static_cast<const S*>(s.y) + at + c;
        float* t = to + c;
        if (!s.scale) {
            for (int p = 0; p < pixels; p++) store_some(t + p * K, load_some(y + p * C, k), k);
            return;
        }
        const vec scale = load_some(s.scale + c, k), shift = load_some(s.shift + c, k);
        if (!s.y_r && !s.residual) {
            for (int p = 0; p < pixels; p++) {
                ahead(y + (p + pixels) * C);
                const vec n = load_some(y + p * C, k) * scale + shift;
                store_some(t + p * K, s.relu ? relu(n) : n, k);
            }
        } else {
            const vec rscale = s.y_r ? load_some(s.rscale + c, k) : splat(1.f), rshift = s.y_r ? load_some(s.rshift + c, k) : vec{};
            const S* r = static_cast<const S*>(s.y_r ? s.y_r : s.residual) + at + c;
            for (int p = 0; p < pixels; p++) {
                const vec n = load_some(y + p * C, k) * scale + shift + (load_some(r + p * C, k) * rscale + rshift);
                store_some(t + p * K, s.relu ? relu(n) : n, k);
            }
        }
        if (s.z)
            for (int p = 0; p < pixels; p++) store_some(static_cast<S*>(s.z) + at + c + p * C, load_some(t + p * K, k), k);
        if (s.mask) {
            const int bytes = mask_bytes(C);
            for (int p = 0; p < pixels; p++) store_mask(s.mask + (first + p) * bytes + c / L * VECTOR_BYTES, load_some(t + p * K, k));
        }
    });
}
