// The statistics of what lies in memory (moments.cpp).
#pragma once

// x (pixels, C) -> statistics (2, C) double: mean and biased variance.
void moments(const void* x, bool half, long pixels, int C, double* statistics, int threads);
