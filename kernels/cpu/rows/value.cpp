// What a value's gradient is made of, row by row (value.h).
#include "rows/value.h"
#include "rows/activation.h"
#include "rows/strips.h"

template <typename S>
void dy_row(const Path& path, int n, int q, float* row, int K) {
    const Geometry& g = path.g;
    const size_t at = (static_cast<size_t>(n) * g.oh + q) * g.ow * g.oc;
    const S *ds = static_cast<const S*>(path.ds) + at, *y = static_cast<const S*>(path.y) + at;
    strips(0, g.oc, [&](int c, auto V, auto k) {
        vec c1[V], c2[V], c0[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            c1[v] = load_some(path.c1 + c + v * L, k);
            if (path.c2) c2[v] = load_some(path.c2 + c + v * L, k), c0[v] = load_some(path.c0 + c + v * L, k);
        }
        for (int x = 0; x < g.ow; x++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const ptrdiff_t i = static_cast<ptrdiff_t>(x) * g.oc + c + v * L;
                float* to = row + static_cast<ptrdiff_t>(x) * K + c + v * L;
                ahead(ds + i + g.ow * g.oc), ahead(y + i + g.ow * g.oc);  // the next row's
                if (path.c2)
                    store_some(to, load_some(ds + i, k) * c1[v] + (load_some(y + i, k) * c2[v] + c0[v]), k);
                else store_some(to, load_some(ds + i, k) * c1[v], k);
            }
    });
}

template <typename S>
void finish_row(
    const Value& value, size_t pixel, const float* row, int c, int end, int C, int n_ys, double* sums) {
    const size_t at = pixel * value.c;
    const S *added[2], *ys[2], *n_kept = static_cast<const S*>(value.mask);
    for (int a = 0; a < 2; a++)
        added[a] = static_cast<const S*>(value.added[a]), ys[a] = static_cast<const S*>(value.ys[a]);
    const int bytes = mask_bytes(value.c);
    with_function(value.function, [&](auto F) {
        strips(c, end, [&](int c, auto V, auto k) {
            vec scale[V], shift[V], mean[2][V], total[V], product[2][V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const bool again = F() != IDENTITY && !value.mask;
                scale[v] = again ? load_some(value.scale + c + v * L, k) : vec{},
                shift[v] = again ? load_some(value.shift + c + v * L, k) : vec{};
                for (int a = 0; a < 2; a++)
                    mean[a][v] = a < n_ys ? load_some(value.means[a] + c + v * L, k) : vec{},
                    product[a][v] = vec{};
                total[v] = vec{};
            }
            for (int q = 0; q < value.w; q++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    const size_t i = at + static_cast<size_t>(q) * value.c + c + v * L;
                    vec dz = load(row + static_cast<ptrdiff_t>(q) * C + c + v * L);
                    for (int a = 0; a < 2; a++)
                        if (added[a]) dz += load_some(added[a] + i, k);
                    const vec y = n_ys ? load_some(ys[0] + i, k) : vec{};
                    if (n_ys) ahead(ys[0] + i + static_cast<size_t>(value.w) * value.c);  // the next row's
                    if constexpr (F() != IDENTITY) {
                        if (!value.mask) {
                            dz = gradient_of<F()>(dz, y * scale[v] + shift[v], value.slope);
                        } else if constexpr (has_gate(F())) {
                            const uint8_t* bits = static_cast<const uint8_t*>(value.mask)
                                + (pixel + q) * bytes + (c / L + v) * VECTOR_BYTES;
                            if constexpr (F() == LEAKY_RELU)
                                dz = masked(splat(1.f), bits) != 0.f ? dz : dz * value.slope;
                            else dz = masked(opened<F()>(dz), bits);
                        } else {
                            dz = gradient_of<F()>(dz, load_some(n_kept + i, k), value.slope);
                        }
                    }
                    S* to = static_cast<S*>(value.ds) + i;
                    const vec ds = as_stored(to, dz);  // the sums are of what is stored
                    store_some(to, ds, k);
                    total[v] += ds, product[0][v] += ds * (y - mean[0][v]);
                    if (n_ys > 1) product[1][v] += ds * (load_some(ys[1] + i, k) - mean[1][v]);
                }
            if (!sums) return;
            for (int a = 0; a < n_ys; a++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    add_to(sums + 2 * a * C + c + v * L, total[v]),
                        add_to(sums + (2 * a + 1) * C + c + v * L, a ? product[1][v] : product[0][v]);
        });
    });
}

template void dy_row<float>(const Path&, int, int, float*, int);
template void dy_row<bfloat16>(const Path&, int, int, float*, int);
template void finish_row<float>(const Value&, size_t, const float*, int, int, int, int, double*);
template void finish_row<bfloat16>(const Value&, size_t, const float*, int, int, int, int, double*);
