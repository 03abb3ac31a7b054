// What a value's gradient is made of, row by row: dy of each path, and what happens to the sum before it is stored.
#pragma once
#include "activation.h"
#include "base.h"
#include "geometry.h"

extern "C" struct Path {
    Geometry g;  // of the forward convolution
    int M;       // Winograd's F(M×M, 3×3), 0 for the direct sum, RAW for the direct sum by a weight that was not packed
    const void *ds, *y;         // (N, OH, OW, OC)
    const float *c1, *c2, *c0;  // (OC,); c2 and c0 null where statistics are frozen
    const float* weights;
};

extern "C" struct Value {
    int n, h, w, c, function, half; // half: activations and gradients are bfloat16, the paths' too; else float32
    float slope;                    // the function's, where it has one
    const void* mask;               // the forward's, or null: n is recomputed from ys[0]
    const void* ys[2];              // (N, H, W, C), the raw outputs that the value was made of; null beyond
    const float* means[2];          // (C,)
    const float *scale, *shift;     // (C,), of ys[0]
    const void* added[2];           // (N, H, W, C), or null
    void* ds;                       // (N, H, W, C), out
};

// dy = c1·ds + c2·y + c0 of row q of image n, into `row`, K ≥ OC floats a pixel. S: what is stored.
template <typename S>
inline void dy_row(const Path& path, int n, int q, float* row, int K) {
    const Geometry& g = path.g;
    const size_t at = (static_cast<size_t>(n) * g.oh + q) * g.ow * g.oc;
    across(0, g.oc, [&](int c, auto k) {
        const S *ds = static_cast<const S*>(path.ds) + at + c, *y = static_cast<const S*>(path.y) + at + c;
        const vec c1 = load_some(path.c1 + c, k);
        if (!path.c2) {
            for (int x = 0; x < g.ow; x++) store_some(row + x * K + c, load_some(ds + x * g.oc, k) * c1, k);
            return;
        }
        const vec c2 = load_some(path.c2 + c, k), c0 = load_some(path.c0 + c, k);
        for (int x = 0; x < g.ow; x++) {
            ahead(ds + (x + g.ow) * g.oc), ahead(y + (x + g.ow) * g.oc);
            store_some(row + x * K + c, load_some(ds + x * g.oc, k) * c1 + (load_some(y + x * g.oc, k) * c2 + c0), k);
        }
    });
}

// One row's channels c … c+k: added terms, mask, ds, sums; one simple pass each, the row stays in the first-level cache.
// C: floats a pixel of `row`. sums: (n_ys, 2, C) double, or null.
template <typename S, typename Some>
inline void finish_row(const Value& v, size_t pixel, float* row, int c, Some k, int C, int n_ys, double* sums) {
    const size_t at = pixel * v.c + c;
    float* t = row + c;
    for (const void* term : v.added)
        if (const S* added = static_cast<const S*>(term))
            for (int q = 0; q < v.w; q++) store(t + q * C, load(t + q * C) + load_some(added + at + q * v.c, k));
    with_function(v.function, [&](auto F) {
        if constexpr (F() == IDENTITY) return;
        if (!v.mask) {
            const vec scale = load_some(v.scale + c, k), shift = load_some(v.shift + c, k);
            const S* y = static_cast<const S*>(v.ys[0]) + at;
            for (int q = 0; q < v.w; q++) {
                ahead(y + (q + v.w) * v.c);
                store(t + q * C, gradient_of<F()>(load(t + q * C), load_some(y + q * v.c, k) * scale + shift, v.slope));
            }
        } else if constexpr (has_gate(F())) {
            const int bytes = mask_bytes(v.c);
            const uint8_t* bits = static_cast<const uint8_t*>(v.mask) + pixel * bytes + c / L * VECTOR_BYTES;
            for (int q = 0; q < v.w; q++) {
                const vec dz = load(t + q * C);
                if constexpr (F() == LEAKY_RELU) store(t + q * C, masked(splat(1.f), bits + q * bytes) != 0.f ? dz : dz * v.slope);
                else store(t + q * C, masked(opened<F()>(dz), bits + q * bytes));
            }
        } else {
            const S* n = static_cast<const S*>(v.mask) + at;
            for (int q = 0; q < v.w; q++) store(t + q * C, gradient_of<F()>(load(t + q * C), load_some(n + q * v.c, k), v.slope));
        }
    });
    vec total = {};
    for (int q = 0; q < v.w; q++) {
        S* to = static_cast<S*>(v.ds) + at + q * v.c;
        const vec ds = as_stored(to, load(t + q * C));
        store_some(to, ds, k);
        if constexpr (!std::is_same_v<S, float>) store(t + q * C, ds);  // the sums are of what is stored
        total += ds;
    }
    if (!sums) return;
    for (int a = 0; a < n_ys; a++) {
        const vec mean = load_some(v.means[a] + c, k);
        vec product = {};
        for (int q = 0; q < v.w; q++) product += load(t + q * C) * (load_some(static_cast<const S*>(v.ys[a]) + at + q * v.c, k) - mean);
        for (int l = 0; l < L; l++) sums[2 * a * C + c + l] += total[l], sums[(2 * a + 1) * C + c + l] += product[l];
    }
}
