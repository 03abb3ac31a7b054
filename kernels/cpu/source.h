// What a convolution reads: z = function(scale·y + shift [+ rscale·y_r + rshift | + residual]), formed as it is loaded.
#pragma once
#include "base.h"

extern "C" struct Source {
    int function, half;           // half: y, y_r, residual and z are bfloat16, else float32
    int rows, stride;             // where there are tasks: pixels an image; floats from one task's vectors to the next's
    float slope;                  // the function's, where it has one
    const void* y;                // (N, H, W, C)
    const float *scale, *shift;   // (C,); null: y is z itself
    const void* y_r;              // a projection's raw output, or null
    const float *rscale, *rshift;
    const void* residual;         // (N, H, W, C), or null
    void* z;                      // where to write z, or null
    void* mask;                   // where to write what the derivative needs, or null: bits, see store_mask; without a gate n, (N, H, W, C)
    const int* tasks;             // (N,): whose scale, shift, rscale and rshift each image takes; null: all the same
};

// Forms `pixels` pixels of C channels from pixel `first` on, into `to` (K ≥ C floats a pixel) and, if asked, z and its mask.
// S: what activations are stored in.
template <typename S>
void form(const Source& s, size_t first, int pixels, int C, float* to, int K);
