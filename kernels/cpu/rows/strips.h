// Passes over rows of pixels whose channels lie together: a strip of some vectors of channels at a time, so
// that lines of memory are read one after another, and what is summed by channel stays in registers.
#pragma once
#include "base.h"

constexpr int STRIP = 4;  // vectors

// Adds a vector's numbers to as many sums.
inline void add_to(double* sums, vec v) {
    float numbers[L];
    store(numbers, v);
    for (int l = 0; l < L; l++) sums[l] += numbers[l];
}

// f(c, how many vectors, how many channels of each), from channel c up to C; the channels that fill no vector
// last.
template <typename F>
inline void strips(int c, int C, F f) {
    for (; c + STRIP * L <= C; c += STRIP * L) f(c, std::integral_constant<int, STRIP>{}, Whole{});
    for (; c + 2 * L <= C; c += 2 * L) f(c, std::integral_constant<int, 2>{}, Whole{});
    if (c + L <= C) f(c, std::integral_constant<int, 1>{}, Whole{}), c += L;
    if (c < C) f(c, std::integral_constant<int, 1>{}, C - c);
}
