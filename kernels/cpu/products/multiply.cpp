// The register tiles (multiply.h), one function each.
#include "products/multiply.h"
#include <utility>

// STEP is in_step where that is known to the compiler: the pixels' addresses are then constants off one
// register; else 0.
template <int P, int V, int STEP>
static void strip(const Product& product, const float* in, float* out, int tiles) {
    const ptrdiff_t in_step = STEP ? STEP : product.in_step, out_step = product.out_step;
    const int K = product.K, n_taps = product.n_taps;
    const bool add = product.add;
    for (int tile = 0; tile < tiles; tile++, in += P * in_step, out += P * out_step) {
        vec acc[P][V];
#pragma GCC unroll 16
        for (int p = 0; p < P; p++)
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) acc[p][v] = vec{};
        for (int t = 0; t < n_taps; t++) {
            const float* a = in + product.taps[t];
            const float* b = product.w + t * product.w_tap * (V * L);
            for (int k = 0; k < K; k++, a++, b += V * L) {
                vec row[V];
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) row[v] = load(b + v * L);
#pragma GCC unroll 16
                for (int p = 0; p < P; p++)
#pragma GCC unroll 2
                    for (int v = 0; v < V; v++) acc[p][v] += a[p * in_step] * row[v];
            }
        }
        if (add) {  // a sum of its own, added at last: sums of sums round off less
#pragma GCC unroll 16
            for (int p = 0; p < P; p++)
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) acc[p][v] += load(out + p * out_step + v * L);
        }
#pragma GCC unroll 16
        for (int p = 0; p < P; p++)
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) store(out + p * out_step + v * L, acc[p][v]);
    }
}

// The same for pixels that lie anywhere, `ins` and `outs` from in and out on, and for some of all taps.
template <int P, int V>
static void scatter(const Product& product, const int* order, const float* in, float* out,
                    const ptrdiff_t* ins, const ptrdiff_t* outs) {
    const int K = product.K, n_taps = product.n_taps;
    const float* a[P];
    vec acc[P][V];
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) {
        a[p] = in + ins[p];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) acc[p][v] = vec{};
    }
    for (int t = 0; t < n_taps; t++) {
        const ptrdiff_t from = product.taps[t];
        const float* b = product.w + order[t] * product.w_tap * (V * L);
        for (ptrdiff_t k = from; k < from + K; k++, b += V * L) {
            vec row[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) row[v] = load(b + v * L);
#pragma GCC unroll 16
            for (int p = 0; p < P; p++)
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) acc[p][v] += a[p][k] * row[v];
        }
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; p++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++)
            store(out + outs[p] + v * L, product.add ? acc[p][v] + load(out + outs[p] + v * L) : acc[p][v]);
}

using Scatter = void (*)(const Product&, const int* order, const float* in, float* out, const ptrdiff_t* ins,
                         const ptrdiff_t* outs);

template <int V, size_t... P>
static Scatter choose_scatter(int pixels, std::index_sequence<P...>) {
    static constexpr Scatter all[] = {scatter<P + 1, V>...};
    return all[pixels - 1];
}

template <int V, int STEP, size_t... P>
static Strip choose(int pixels, std::index_sequence<P...>) {
    static constexpr Strip strips[] = {strip<P + 1, V, STEP>...};
    return strips[pixels - 1];
}

template <int V>
static Strip choose(int pixels, ptrdiff_t in_step) {
    using Pixels = std::make_index_sequence<MOST_PIXELS[V]>;
    return in_step == 16 ? choose<V, 16>(pixels, Pixels{})
                         : choose<V, 0>(pixels, Pixels{});  // for more channels the constants gain nothing
}

Cut cut_pixels(int V, ptrdiff_t in_step, int n) {
    const int tiles = (n + MOST_PIXELS[V] - 1) / MOST_PIXELS[V], few = n / tiles,
              more = n % tiles;  // `more` tiles have one more
    const auto strip = V == 2 ? choose<2> : choose<1>;
    Cut cut{};
    cut.tiles[0] = more ? more : tiles, cut.pixels[0] = more ? few + 1 : few;
    cut.tiles[1] = tiles - cut.tiles[0], cut.pixels[1] = few;
    cut.strip[0] = strip(cut.pixels[0], in_step);
    if (cut.tiles[1]) cut.strip[1] = strip(few, in_step);
    return cut;
}

void Pixels::multiply(const float* w, const float* in, float* out) {
    int count = 0;
    Cut cut{};
    for (const Row& row : rows) {
        if (row.count != count) cut = cut_pixels(product.V, product.in_step, count = row.count);
        product.taps = row.taps, product.n_taps = row.n_taps,
        product.w = w + row.first * product.w_tap * product.V * L;
        ::multiply(product, cut, in + row.in, out + row.out);
    }
    product.w = w;
    for (const Scattered& some : scattered) {
        product.taps = some.taps.data(), product.n_taps = static_cast<int>(some.taps.size());
        const int n = static_cast<int>(some.in.size()), most = MOST_PIXELS[product.V],
                  tiles = (n + most - 1) / most;
        for (int tile = 0, p = 0; tile < tiles; tile++) {
            const int here = (n - p + tiles - tile - 1) / (tiles - tile);
            const Scatter of = product.V == 2
                                   ? choose_scatter<2>(here, std::make_index_sequence<MOST_PIXELS[2]>{})
                                   : choose_scatter<1>(here, std::make_index_sequence<MOST_PIXELS[1]>{});
            of(product, some.order.data(), in, out, some.in.data() + p, some.out.data() + p);
            p += here;
        }
    }
}
