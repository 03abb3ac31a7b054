// Convolutions by groups, row by row: depthwise ones a channel at a time, others as small products of a block's own groups.
//
// Layout   packed weights: depthwise (taps, C), C filled up to whole vectors, both ways; else by blocks of output channels (of two vectors
//          where a group's channels are so many, else of one) (taps, K, block), K the channels of the groups that the block touches, zero
//          where a group does not read them; for the input gradient likewise, its taps in the order of the parity classes.
#pragma once
#include <vector>
#include "base.h"
#include "geometry.h"
#include "multiply.h"

struct Source;
struct Value;
struct Path;

// y = conv(z) with y's statistics, as fastbn_convolve; and one path's gradient, as fastbn_gradient.
void convolve_groups(const Geometry& g, const Source& source, const float* weights, void* y, double* statistics, int threads);
void gradient_groups(const Value& value, const Path& path, double* sums, int threads);

// The latest `count` rows of an image, each of `size` floats; a row outside of the image is all zeros.
struct Ring {
    int count, height;
    size_t size;
    float* rows;

    Ring(int count, int height, size_t size) : count(count), height(height), size(size), rows(floats((count + 1) * size)) {
        memset(rows, 0, sizeof(float) * (count + 1) * size);
    }
    ~Ring() { free(rows); }
    Ring(const Ring&) = delete;
    ptrdiff_t at(int row) const { return static_cast<ptrdiff_t>(size) * (row < 0 || row >= height ? count : row % count); }
};

// Bands of rows, of single images, by shape alone: a ring forms a band's rows once, but for the few that two bands read.
inline int band(int n, int height, int kernel) {
    int bands = 1;
    while (n * bands < 16 && height / (2 * bands) >= kernel) bands *= 2;
    return (height + bands - 1) / bands;
}

// What one row of pixels is computed by: out[p·out_step + c] = Σ_taps Σ_k in[p·in_step + tap + k] · w.
struct Groups {
    int C, inner, outer;  // channels written, and a group's channels, read and written
    int n_all;            // taps of the kernel
    ptrdiff_t in_step;
    const float* weights;

    bool depthwise() const { return inner == 1 && outer == 1; }
    // taps: where they read; which: their places among all. For groups that are not depthwise they follow each other.
    void row(const float* in, const ptrdiff_t* taps, const int* which, int n_taps, float* out, ptrdiff_t out_step, int pixels) const;
};
