// The statistics of what lies in memory, for a BatchNorm that reads no convolution's raw output.
//
// Traffic  reads x once and writes 2·C.
// Bits     items are cut by shape alone, and merged in their order.
#include "rows/moments.h"
#include <vector>
#include "rows/statistics.h"
#include "threads/parallel.h"

constexpr long MOST_ITEMS = 64, LEAST_PIXELS = 256, TOGETHER = 64;  // TOGETHER: pixels summed in float32

template <typename S>
static void moments_of(const S* x, long pixels, int C, double* statistics, int threads) {
    const int step = round_up(C, L);
    const long most = (pixels + MOST_ITEMS - 1) / MOST_ITEMS,
               block = most > LEAST_PIXELS ? most : LEAST_PIXELS;
    const int items = static_cast<int>((pixels + block - 1) / block);
    const auto size = [&](int item) { return pixels - item * block < block ? pixels - item * block : block; };
    std::vector<double> partial(static_cast<size_t>(items) * 3 * step);
    parallel(items, threads, [&](int item) {
        double* mine = partial.data() + static_cast<size_t>(item) * 3 * step;
        const S* first = x + static_cast<size_t>(item) * block * C;
        std::vector<float> pivot(step);
        const long near = size(item) < TOGETHER ? size(item) : TOGETHER;
        strips(0, C, [&](int c, auto V, auto k) {
            for (int v = 0; v < V; v++) {
                vec mean{};
                for (long p = 0; p < near; p++) mean += load_some(first + p * C + c + v * L, k);
                store(pivot.data() + c + v * L, mean / static_cast<float>(near));
            }
        });
        for (int c = 0; c < C; c++) mine[c] = pivot[c];
        for (long begin = 0; begin < size(item); begin += TOGETHER) {
            const long end = begin + TOGETHER < size(item) ? begin + TOGETHER : size(item);
            strips(0, C, [&](int c, auto V, auto k) {
                vec about[V], sum[V], square[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    about[v] = load(pivot.data() + c + v * L), sum[v] = square[v] = vec{};
                for (long p = begin; p < end; p++)
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) {
                        const vec d = load_some(first + p * C + c + v * L, k) - about[v];
                        sum[v] += d, square[v] += d * d;
                    }
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    add_to(mine + step + c + v * L, sum[v]), add_to(mine + 2 * step + c + v * L, square[v]);
            });
        }
    });
    for (int c = 0; c < C; c++)
        merge(
            items, [&](int item) { return partial.data() + static_cast<size_t>(item) * 3 * step + c; }, size,
            step, statistics[c], statistics[C + c]);
}

void moments(const void* x, bool half, long pixels, int C, double* statistics, int threads) {
    if (half) moments_of(static_cast<const bfloat16*>(x), pixels, C, statistics, threads);
    else moments_of(static_cast<const float*>(x), pixels, C, statistics, threads);
}
