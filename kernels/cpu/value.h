// What a value's gradient is made of, row by row: dy of each path, and what happens to the sum before it is stored.
#pragma once
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
void dy_row(const Path& path, int n, int q, float* row, int K);

// One row's channels c … end: added terms, the function's derivative, ds, sums, in one pass.
// C: floats a pixel of `row`. sums: (n_ys, 2, C) double, or null.
template <typename S>
void finish_row(const Value& value, size_t pixel, const float* row, int c, int end, int C, int n_ys, double* sums);
