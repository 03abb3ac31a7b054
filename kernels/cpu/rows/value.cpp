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
        const bool affine = path.c2;
        const ptrdiff_t from_step = g.oc, step = K, line = static_cast<ptrdiff_t>(g.ow) * g.oc;
        const S *const from = ds + c, *const raw = y + c;
        for (ptrdiff_t x = 0; x < g.ow; x++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const ptrdiff_t i = x * from_step + v * L;
                if (v * L % LINE == 0) ahead(from + i + line), ahead(raw + i + line);  // the next row's
                float* const to = row + x * step + c + v * L;
                if (affine)
                    store_some(
                        to, load_some(from + i, k) * c1[v] + (load_some(raw + i, k) * c2[v] + c0[v]), k);
                else store_some(to, load_some(from + i, k) * c1[v], k);
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
            const S *const first = added[0] ? added[0] + at + c : nullptr,
                    *const second = added[1] ? added[1] + at + c : nullptr,
                    *const raw = n_ys ? ys[0] + at + c : nullptr,
                    *const other = n_ys > 1 ? ys[1] + at + c : nullptr,
                    *const n_at = n_kept ? n_kept + at + c : nullptr;
            const float* const from = row + c;
            S* const to = static_cast<S*>(value.ds) + at + c;
            const void* const kept = value.mask;
            const uint8_t* const bits =
                kept ? static_cast<const uint8_t*>(kept) + pixel * bytes + c / L * VECTOR_BYTES : nullptr;
            const ptrdiff_t width = value.w, to_step = value.c, step = C, mask_step = bytes;
            const float slope = value.slope;
            for (ptrdiff_t q = 0; q < width; q++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    const ptrdiff_t i = q * to_step + v * L;
                    vec dz = load(from + q * step + v * L);
                    if (first) dz += load_some(first + i, k);
                    if (second) dz += load_some(second + i, k);
                    const vec y = raw ? load_some(raw + i, k) : vec{};
                    if (raw && v * L % LINE == 0) ahead(raw + i + width * to_step);  // the next row's
                    if constexpr (F() != IDENTITY) {
                        if (!kept) {
                            dz = gradient_of<F()>(dz, y * scale[v] + shift[v], slope);
                        } else if constexpr (has_gate(F())) {
                            const uint8_t* open = bits + q * mask_step + v * VECTOR_BYTES;
                            if constexpr (F() == LEAKY_RELU)
                                dz = masked(splat(1.f), open) != 0.f ? dz : dz * slope;
                            else dz = masked(opened<F()>(dz), open);
                        } else {
                            dz = gradient_of<F()>(dz, load_some(n_at + i, k), slope);
                        }
                    }
                    const vec ds = as_stored(to + i, dz);  // the sums are of what is stored
                    store_some(to + i, ds, k);
                    total[v] += ds, product[0][v] += ds * (y - mean[0][v]);
                    if (other) product[1][v] += ds * (load_some(other + i, k) - mean[1][v]);
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
