// Convolutions by groups, row by row: depthwise ones a channel at a time, others as small products of a
// block's own groups.
//
// Layout   packed weights: depthwise (taps, C), C filled up to whole vectors, both ways; else by blocks of
//          output channels (of two vectors where a group's channels are so many, else of one)
//          (taps, K, block), K the channels of the groups that the block touches, zero where a group does not
//          read them; for the input gradient likewise, its taps in the order of the parity classes.
#pragma once
#include <vector>
#include "base.h"
#include "structs.h"
#include "products/multiply.h"

struct Source;
struct Value;
struct Path;

// y = conv(z) with y's statistics, as fastbn_convolve; and one path's gradient, as fastbn_gradient.
void convolve_groups(const Geometry& g, const Source& source, const float* weights, void* y,
                     double* statistics, int threads);
void gradient_groups(const Value& value, const Path& path, double* sums, int threads);

// The latest `count` rows of an image, each of `size` floats; a row outside of the image is all zeros.
struct Ring {
    int count, height;
    size_t size;
    float* rows;

    Ring(int count, int height, size_t size)
        : count(count), height(height), size(size), rows(floats((count + 1) * size)) {
        memset(rows, 0, sizeof(float) * (count + 1) * size);
    }
    ~Ring() { free(rows); }
    Ring(const Ring&) = delete;
    ptrdiff_t at(int row) const {
        return static_cast<ptrdiff_t>(size) * (row < 0 || row >= height ? count : row % count);
    }
};

// Bands of rows, of single images, by shape alone: a ring forms a band's rows once, but for the few that two
// bands read.
inline int band(int n, int height, int kernel) {
    int bands = 1;
    while (n * bands < 16 && height / (2 * bands) >= kernel) bands *= 2;
    return (height + bands - 1) / bands;
}

// What one row of pixels reads: the offset of each tap, and its place among the kernel's taps.
struct Taps {
    const ptrdiff_t* at;
    const int* which;
    int n;
};

// What rows of pixels are computed by: out[p·out_step + c] = Σ_taps Σ_k in[p·in_step + tap + k] · w.
struct Groups {
    int C, inner, outer;  // channels written, and a group's channels, read and written
    int n_all;            // taps of the kernel
    ptrdiff_t in_step;
    const float* weights;
    // so many taps follow each other pixel by pixel, forwards or, negative, backwards; 0: they do not
    int run;

    bool depthwise() const { return inner == 1 && outer == 1; }
    // Some rows at once, `out_row` apart: what they read of the same lines is then near. The places of taps
    // of groups that are not depthwise follow each other.
    void rows(const float* in, const Taps* taps, int rows, float* out, ptrdiff_t out_row, ptrdiff_t out_step,
              int pixels) const;
};

// How many rows are computed at once: what they read stays in half of the L2 of a small core.
inline int rows_at_once(int most, size_t row_bytes, int kernel, int step) {
    int rows = 4 < most ? 4 : most;
    while (rows > 1 && row_bytes * static_cast<size_t>(kernel + (rows - 1) * step) > (512 << 10)) rows--;
    return rows;
}
