// What a convolution reads, formed row by row (source.h).
#include "rows/source.h"
#include "rows/activation.h"
#include "rows/strips.h"

template <typename S>
static void form_some(const Source& s, size_t first, int pixels, int C, float* to, int K) {
    const size_t at = first * C;
    const S *y = static_cast<const S*>(s.y) + at, *r = static_cast<const S*>(s.y_r ? s.y_r : s.residual);
    if (!s.scale) {
        if constexpr (std::is_same_v<S, float>)
            if (K == C && C < L) {
                memcpy(to, y, sizeof(float) * pixels * C);
                return;
            }
        for (int p = 0; p < pixels; p++)
            across(0, C, [&](int c, auto k) {
                store_some(to + static_cast<ptrdiff_t>(p) * K + c,
                    load_some(y + static_cast<ptrdiff_t>(p) * C + c, k), k);
            });
        return;
    }
    const int bytes = mask_bytes(C);
    const auto run = [&](auto F, auto plain) {  // plain: neither a second term, nor z or its mask to write
        strips(0, C, [&](int c, auto V, auto k) {
            vec scale[V], shift[V], rscale[V], rshift[V];
            // copies, which no byte of a mask that is written could change
            const S *const from = y + c, *const second = r ? r + at + c : nullptr;
            float* const formed = to + c;
            S* const z_at = s.z ? static_cast<S*>(s.z) + at + c : nullptr;
            void* const kept = s.mask;
            uint8_t* const bits =
                kept ? static_cast<uint8_t*>(kept) + first * bytes + c / L * VECTOR_BYTES : nullptr;
            S* const n_at = kept ? static_cast<S*>(kept) + at + c : nullptr;
            const ptrdiff_t from_step = C, row = pixels * from_step, step = K, mask_step = bytes;
            const float slope = s.slope;
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                scale[v] = load_some(s.scale + c + v * L, k), shift[v] = load_some(s.shift + c + v * L, k);
                rscale[v] = s.y_r ? load_some(s.rscale + c + v * L, k) : splat(1.f),
                rshift[v] = s.y_r ? load_some(s.rshift + c + v * L, k) : vec{};
            }
            for (ptrdiff_t p = 0; p < pixels; p++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    const ptrdiff_t i = p * from_step + v * L;
                    if (v * L % LINE == 0) ahead(from + i + row);  // the next row's
                    vec n = load_some(from + i, k) * scale[v] + shift[v];
                    if constexpr (!plain()) {
                        if (second) n += load_some(second + i, k) * rscale[v] + rshift[v];
                        if (kept) {
                            if constexpr (has_gate(F()))
                                store_mask(bits + p * mask_step + v * VECTOR_BYTES, gate<F()>(n));
                            else store_some(n_at + i, n, k);
                        }
                    }
                    const vec z = apply<F()>(n, slope);
                    store_some(formed + p * step + v * L, z, k);
                    if constexpr (!plain())
                        if (z_at) store_some(z_at + i, z, k);
                }
        });
    };
    with_function(s.function, [&](auto F) {
        if (r || s.mask || s.z) run(F, std::false_type{});
        else run(F, std::true_type{});
    });
}

// Pixels of one image have one task.
template <typename S>
void form(const Source& s, size_t first, int pixels, int C, float* to, int K) {
    if (!s.tasks) return form_some<S>(s, first, pixels, C, to, K);
    for (int done = 0, here; done < pixels; done += here) {
        const size_t at = first + done, image = at / s.rows, left = (image + 1) * s.rows - at;
        here = left < static_cast<size_t>(pixels - done) ? static_cast<int>(left) : pixels - done;
        const ptrdiff_t own = static_cast<ptrdiff_t>(s.tasks[image]) * s.stride;
        Source of_task = s;
        of_task.scale += own, of_task.shift += own;
        if (s.rscale) of_task.rscale += own, of_task.rshift += own;
        form_some<S>(of_task, at, here, C, to + static_cast<ptrdiff_t>(done) * K, K);
    }
}

template void form<float>(const Source&, size_t, int, int, float*, int);
template void form<bfloat16>(const Source&, size_t, int, int, float*, int);
