// A raw output's statistics: each item sums about a value of its own, and the items' (count, mean, M2) are
// merged in their order.
// Source   Chan, Golub, LeVeque 1983, the pairwise update.
#pragma once
#include "base.h"
#include "rows/strips.h"

// Writes channels c … end of a row of `pixels` pixels, `step` floats a pixel, to y, C a pixel, as it is
// stored, and adds Σ (y − pivot) and Σ (y − pivot)² of what was stored to sums (3, step) double, whose first
// row is the pivot; sums may be null.
template <typename S>
inline void store_row(const float* row, int pixels, int c, int end, int C, int step, const float* pivot, S* y,
    double* sums) {
    strips(c, end, [&](int c, auto V, auto k) {
        vec about[V], sum[V], square[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) about[v] = load(pivot + c + v * L), sum[v] = square[v] = vec{};
        for (int q = 0; q < pixels; q++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const vec t = as_stored(y, load(row + static_cast<ptrdiff_t>(q) * step + c + v * L)),
                          d = t - about[v];
                store_some(y + static_cast<ptrdiff_t>(q) * C + c + v * L, t, k);
                sum[v] += d, square[v] += d * d;
            }
#pragma GCC unroll 4
        for (int v = 0; sums && v < V; v++)
            add_to(sums + step + c + v * L, sum[v]), add_to(sums + 2 * step + c + v * L, square[v]);
    });
}

// Merges one channel's items. at(item): its (pivot, Σ, Σ²), `step` apart; size(item): its pixels. Writes the
// mean and the biased variance.
template <typename At, typename Size>
inline void merge(int items, At at, Size size, int step, double& mean, double& var) {
    double count = 0, m2 = 0;
    mean = 0;
    for (int item = 0; item < items; item++) {
        const double *p = at(item), n = static_cast<double>(size(item)), d = p[0] + p[step] / n - mean,
                     total = count + n;
        m2 += p[2 * step] - p[step] * p[step] / n + d * d * count * n / total;
        mean += d * n / total;
        count = total;
    }
    var = m2 > 0 || m2 != m2 ? m2 / count : 0;
}
