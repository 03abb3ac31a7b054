// What a convolution reads: z = function(scale·y + shift [+ rscale·y_r + rshift | + residual]), formed as it is loaded.
#pragma once
#include "activation.h"
#include "base.h"

extern "C" struct Source {
    int function, half;           // half: y, y_r, residual and z are bfloat16, else float32
    float slope;                  // the function's, where it has one
    const void* y;                // (N, H, W, C)
    const float *scale, *shift;   // (C,); null: y is z itself
    const void* y_r;              // a projection's raw output, or null
    const float *rscale, *rshift;
    const void* residual;         // (N, H, W, C), or null
    void* z;                      // where to write z, or null
    void* mask;                   // where to write what the derivative needs, or null: bits, see store_mask; without a gate n, (N, H, W, C)
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
        with_function(s.function, [&](auto F) {
            if (!s.y_r && !s.residual && !s.mask) {
                for (int p = 0; p < pixels; p++) {
                    ahead(y + (p + pixels) * C);
                    store_some(t + p * K, apply<F()>(load_some(y + p * C, k) * scale + shift, s.slope), k);
                }
                return;
            }
            const vec rscale = s.y_r ? load_some(s.rscale + c, k) : splat(1.f), rshift = s.y_r ? load_some(s.rshift + c, k) : vec{};
            const S* r = s.y_r || s.residual ? static_cast<const S*>(s.y_r ? s.y_r : s.residual) + at + c : nullptr;
            uint8_t* bits = static_cast<uint8_t*>(s.mask) + first * mask_bytes(C) + c / L * VECTOR_BYTES;
            S* whole = static_cast<S*>(s.mask) + at + c;
            for (int p = 0; p < pixels; p++) {
                vec n = load_some(y + p * C, k) * scale + shift;
                if (r) n += load_some(r + p * C, k) * rscale + rshift;
                if (s.mask) {
                    if constexpr (has_gate(F())) store_mask(bits + p * mask_bytes(C), gate<F()>(n));
                    else store_some(whole + p * C, n, k);
                }
                store_some(t + p * K, apply<F()>(n, s.slope), k);
            }
        });
        if (s.z)
            for (int p = 0; p < pixels; p++) store_some(static_cast<S*>(s.z) + at + c + p * C, load_some(t + p * K, k), k);
    });
}
