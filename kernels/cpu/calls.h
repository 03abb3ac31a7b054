// The functions that the engine calls. They are documented where they are defined.
#pragma once
#include <cstddef>
#include "structs.h"

extern "C" {
void fastbn_convolve(const Geometry* geometry, const Source* source, const float* weights, int M, void* y,
    double* statistics, int threads);
void fastbn_form(const Source* source, long pixels, int C, int threads);
void fastbn_gradient(const Value* value, const Path* paths, int n_paths, double* sums, int threads);
void fastbn_normalise(const Norm* norm);
void fastbn_finish(const double* sums, const float* vectors, long vectors_stride, long rows, int C,
    float* out, long stride, float* coefficients);
}
