// What a convolution reads: z = [relu](scale·y + shift [+ rscale·y_r + rshift] [+ residual]), formed as it is loaded.
#pragma once
#include "base.h"

extern "C" struct Source {
    int relu;
    const float *y, *scale, *shift;      // (N, H, W, C), (C,), (C,); scale null: y is z itself
    const float *y_r, *rscale, *rshift;  // a projection's raw output, or null
    const float* residual;               // (N, H, W, C), or null
    float* z;                            // where to write z, or null
    uint8_t* mask;                       // where to write the ReLU's mask, or null
};

// Forms `pixels` pixels of C channels from pixel `first` on; `to` (may be null) takes them besides z and the mask.
inline void form(const Source& s, size_t first, int pixels, int C, float* to) {
    const size_t at = first * C;
    if (!s.scale) {
        if (to) memcpy(to, s.y + at, sizeof(float) * pixels * C);
        return;
    }
    const int bytes = mask_bytes(C);
    for (int p = 0; p < pixels; p++)
        for (int c = 0; c < C; c += L) {
            const size_t i = at + static_cast<size_t>(p) * C + c;
            const int k = C - c < L ? C - c : L;
            vec t = load_some(s.y + i, k) * load_some(s.scale + c, k) + load_some(s.shift + c, k);
            if (s.y_r) t += load_some(s.y_r + i, k) * load_some(s.rscale + c, k) + load_some(s.rshift + c, k);
            if (s.residual) t += load_some(s.residual + i, k);
            if (s.relu) t = relu(t);
            if (to) store_some(to + static_cast<size_t>(p) * C + c, t, k);
            if (s.z) store_some(s.z + i, t, k);
            if (s.mask) store_mask(s.mask + (first + p) * bytes + c / 8, t, k);
        }
}
