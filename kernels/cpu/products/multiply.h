// The product that every convolution is made of: out[p][·] (+)= Σ_taps Σ_k in[p·in_step + tap + k] ·
// w[tap][k][·].
//
// A tile of P pixels × V vectors of channels is kept in registers over all taps and K. By loads and
// multiply-adds a cycle: a step of k takes P broadcasts and V loads for P·V multiply-adds, so P × V as large
// as the registers allow (14 × 2 of 32, 6 × 2 of 16); P·V ≥ 8 to cover the adders' latency. A row of n pixels
// is cut into tiles as even as can be; where they would be small, as 4 + 3 for 7, tiles take their pixels
// from several rows instead.
#pragma once
#include "base.h"
#include <optional>
#include <vector>

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MOST_PIXELS[] = {0, 16, 14};  // by vectors
#else
constexpr int MOST_PIXELS[] = {0, 12, 6};
#endif
constexpr int FEW = 10;  // sums of a tile that are too few for the adders

struct Product {
    int V;                // vectors of output channels
    ptrdiff_t in_step;    // elements from a pixel read to the next
    ptrdiff_t out_step;   // from a pixel written to the next
    const ptrdiff_t* taps;  // elements from the first pixel read to each tap's
    int n_taps, K;
    const float* w;       // (taps, K, V·L)
    ptrdiff_t w_tap;      // rows of V·L from a tap's first weight to the next tap's
    bool add;
};

using Strip = void (*)(const Product&, const float* in, float* out, int tiles);

// How n pixels of a row are cut into tiles of two sizes that differ by one.
struct Cut {
    Strip strip[2];
    int tiles[2], pixels[2];
};
Cut cut_pixels(int V, ptrdiff_t in_step, int n);

inline void multiply(const Product& product, const Cut& cut, const float* in, float* out) {
    cut.strip[0](product, in, out, cut.tiles[0]);
    if (cut.tiles[1]) {
        const ptrdiff_t done = static_cast<ptrdiff_t>(cut.tiles[0]) * cut.pixels[0];
        cut.strip[1](product, in + done * product.in_step, out + done * product.out_step, cut.tiles[1]);
    }
}

// The pixels that one panel of weights is multiplied by, each with the taps that lie inside of the image.
class Pixels {
  public:
    explicit Pixels(const Product& product) : product(product) {}
    Pixels(Pixels&&) = default;
    // Whether tiles of `count` pixels of one row would be small.
    static bool scatters(int V, int count) {
        const int tiles = (count + MOST_PIXELS[V] - 1) / MOST_PIXELS[V];
        return count * V < FEW * tiles;
    }
    // A row of `count` pixels, from `in` and `out` on; of all taps `n_taps` from the `first` on, which are at
    // `taps`. inside(tap, pixel): whether a tap, counted from the first, reads the image there; the others
    // read zeros.
    template <typename Inside>
    void add(const ptrdiff_t* taps, int first, int n_taps, ptrdiff_t in, ptrdiff_t out, int count,
             Inside inside) {
        if (!scatters(product.V, count)) {
            rows.push_back({taps, first, n_taps, in, out, count});
            return;
        }
        for (int p = 0; p < count; p++) {
            Scattered here;
            for (int t = 0; t < n_taps; t++)
                if (inside(t, p)) here.order.push_back(first + t), here.taps.push_back(taps[t]);
            size_t at = 0;
            while (at < scattered.size() &&
                   (scattered[at].order != here.order || scattered[at].taps != here.taps))
                at++;
            if (at == scattered.size()) scattered.push_back(here);
            scattered[at].in.push_back(in + p * product.in_step);
            scattered[at].out.push_back(out + p * product.out_step);
        }
    }
    void multiply(const float* w, const float* in, float* out);

    Product product;
    std::vector<ptrdiff_t> taps;  // what add's `taps` may point to; it stays where it is

  private:
    struct Row {
        const ptrdiff_t* taps;
        int first, n_taps;
        ptrdiff_t in, out;
        int count;
    };
    struct Scattered {
        std::vector<ptrdiff_t> taps;
        std::vector<int> order;  // of these taps among all
        std::vector<ptrdiff_t> in, out;
    };

    std::vector<Row> rows;
    std::vector<Scattered> scattered;
};

// The pixels of the last item, by the vectors of a block: items of one size, cut at one row, share them.
class ItemPixels {
  public:
    // make(): the pixels, where the last item was another one.
    template <typename Make>
    Pixels& of(int images, int r0, int rows, int V, Make make) {
        if (images != item[0] || r0 != item[1] || rows != item[2])
            by[1].reset(), by[2].reset(), item[0] = images, item[1] = r0, item[2] = rows;
        if (!by[V]) by[V].emplace(make());
        return *by[V];
    }

  private:
    int item[3] = {-1, 0, 0};
    std::optional<Pixels> by[3];
};
