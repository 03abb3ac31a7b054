// What a value's gradient is made of, row by row: dy of each path, and what happens to the sum before it is
// stored.
#pragma once
#include "base.h"
#include "structs.h"

// dy = c1·ds + c2·y + c0 of row q of image n, into `row`, K ≥ OC floats a pixel. S: what is stored.
template <typename S>
void dy_row(const Path& path, int n, int q, float* row, int K);

// One row's channels c … end: added terms, the function's derivative, ds, sums, in one pass.
// C: floats a pixel of `row`. sums: (n_ys, 2, C) double, or null.
template <typename S>
void finish_row(
    const Value& value, size_t pixel, const float* row, int c, int end, int C, int n_ys, double* sums);
