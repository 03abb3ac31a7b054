// What a convolution reads, formed row by row as it is loaded.
#pragma once
#include "base.h"
#include "structs.h"

// Forms `pixels` pixels of C channels from pixel `first` on, into `to` (K ≥ C floats a pixel) and, if asked,
// z and its mask. S: what activations are stored in.
template <typename S>
void form(const Source& s, size_t first, int pixels, int C, float* to, int K);
