// y = conv(z) by groups with y's statistics, and a value's gradient by one such convolution; see grouped.h,
// convolve.cpp, gradient.cpp.
//
// Traffic  as a dense convolution's: each tensor once. Of a depthwise one the arithmetic is small, so that is
// its time.
#include "products/grouped.h"
#include "items.h"
#include "threads/parallel.h"
#include "rows/source.h"
#include "rows/statistics.h"
#include "rows/value.h"

// S: what activations are stored in.
template <typename S>
static void convolve(const Geometry& g, const Source& s, const float* weights, S* y, double* statistics,
                     int threads) {
    const int OC = round_up(g.oc, L), step = pixel_step(round_up(g.c, L)), n_taps = g.kh * g.kw,
              reach = (g.kw - 1) * g.dw + (g.ow - 1) * g.sw + 1;
    const size_t row_size = static_cast<size_t>(reach > g.w + g.pw ? reach : g.w + g.pw) * step;
    const Groups groups{g.oc,
                        g.c / g.groups,
                        g.oc / g.groups,
                        n_taps,
                        static_cast<ptrdiff_t>(g.sw) * step,
                        weights,
                        g.sw == 1 && g.dw == 1 ? g.kw : 0};
    const int height = band(g.n, g.oh, g.kh), window = (g.kh - 1) * g.dh + 1;
    const int together = rows_at_once(height, sizeof(float) * row_size, window, g.sh),
              summed = g.ow < 32 ? 32 / g.ow : 1;  // rows, in float32
    const Items items{1, height, g.n, (g.oh + height - 1) / height, 1};
    std::vector<double> partial(statistics ? static_cast<size_t>(items.count()) * 3 * OC : 0);
    std::vector<int> which;
    for (int t = 0; t < n_taps; t++) which.push_back(t);

    share_out(items.count(), threads, [&](Share& share) {
        Ring ring(window + (together - 1) * g.sh, g.h, row_size);
        const size_t out_row = static_cast<size_t>(g.ow) * OC;
        float* out = floats(out_row * together);
        std::vector<float> pivot(OC), unread(static_cast<size_t>(g.w) * g.c);
        std::vector<ptrdiff_t> at(static_cast<size_t>(n_taps) * together);
        std::vector<Taps> taps;
        for (int k = 0; k < together; k++) taps.push_back({at.data() + k * n_taps, which.data(), n_taps});
        for (int item : share) {
            const int n = items.first_image(item), r0 = items.first_row(item),
                      rows = g.oh - r0 < height ? g.oh - r0 : height;
            const int own = r0 * g.sh, next = (r0 + rows) * g.sh,
                      beyond = r0 + rows == g.oh || next > g.h ? g.h : next;  // whose z this item writes
            int formed = r0 * g.sh - g.ph < 0 ? 0 : r0 * g.sh - g.ph;  // the source row to be formed next
            const auto form_row = [&](int r, float* to, int to_step) {
                Source here = s;
                if (r < own || r >= beyond) here.z = nullptr, here.mask = nullptr;
                form<S>(here, (static_cast<size_t>(n) * g.h + r) * g.w, g.w, g.c, to, to_step);
            };
            double* mine = statistics ? partial.data() + static_cast<size_t>(item) * 3 * OC : nullptr;
            for (int r = r0; r < r0 + rows; r += together) {
                const int here = r0 + rows - r < together ? r0 + rows - r : together,
                          last = (r + here - 1) * g.sh - g.ph + window - 1;
                for (; formed <= last && formed < g.h; formed++)
                    form_row(formed, ring.rows + ring.at(formed) + static_cast<ptrdiff_t>(g.pw) * step, step);
                for (int k = 0; k < here; k++)
                    for (int i = 0; i < g.kh; i++)
                        for (int j = 0; j < g.kw; j++)
                            at[k * n_taps + i * g.kw + j] = ring.at((r + k) * g.sh - g.ph + i * g.dh) +
                                                            static_cast<ptrdiff_t>(j) * g.dw * step;
                groups.rows(ring.rows, taps.data(), here, out, out_row, OC, g.ow);
                if (r == r0) {
                    for (int c = 0; mine && c < OC;
                         c++) {  // the row's mean: its first pixel lies at the padding
                        float sum = 0.f;
                        for (int q = 0; q < g.ow; q++) sum += out[static_cast<ptrdiff_t>(q) * OC + c];
                        mine[c] = pivot[c] = sum / static_cast<float>(g.ow);
                    }
                }
                for (int k = 0; k < here; k += summed) {
                    const int pixels = (here - k < summed ? here - k : summed) * g.ow;
                    store_row(out + k * out_row, pixels, 0, g.oc, g.oc, OC, pivot.data(),
                              y + (static_cast<size_t>(n) * g.oh + r + k) * g.ow * g.oc, mine);
                }
            }
            if (s.z || s.mask)
                for (; formed < beyond; formed++)
                    if (formed >= own) form_row(formed, unread.data(), g.c);
        }
        free(out);
    });
    if (!statistics) return;
    for (int c = 0; c < g.oc; c++)
        merge(
            items.count(), [&](int item) { return partial.data() + static_cast<size_t>(item) * 3 * OC + c; },
            [&](int item) {
                const int left = g.oh - items.first_row(item);
                return static_cast<long>(left < height ? left : height) * g.ow;
            },
            OC, statistics[c], statistics[g.oc + c]);
}

// For the columns of one parity, and the rows of each: the taps of the kernel that reach them.
struct Parity {
    std::vector<int> i, j, which;
};

template <typename S>
static void gradient(const Value& v, const Path& path, double* sums, int threads) {
    const Geometry& g = path.g;
    const int C = round_up(v.c, L), step = pixel_step(round_up(g.oc, L)),
              n_ys = v.ys[1]   ? 2
                     : v.ys[0] ? 1
                               : 0;
    const Groups groups{v.c,
                        g.oc / g.groups,
                        g.c / g.groups,
                        g.kh * g.kw,
                        step,
                        path.weights,
                        g.sw == 1 && g.dw == 1 ? -g.kw : 0};
    int left = (g.kw - 1) * g.dw -
               g.pw;  // dx[x] reads dy[q] with q·s = x + pad − k·d: columns of zeros before the first
    left = left > 0 ? (left + g.sw - 1) / g.sw : 0;
    const int columns = left + ((g.w - 1 + g.pw) / g.sw + 1 > g.ow ? (g.w - 1 + g.pw) / g.sw + 1 : g.ow);
    const int height = band(v.n, v.h, g.kh * g.sh), window = (g.kh - 1) * g.dh / g.sh + 1;
    const int together = rows_at_once(height, sizeof(float) * columns * step, window, 1);
    const Items items{1, height, v.n, (v.h + height - 1) / height, 1};
    std::vector<double> partial(sums ? static_cast<size_t>(items.count()) * 2 * n_ys * C : 0);
    std::vector<Parity> parities;
    int packed = 0;
    for (int y = 0; y < g.sh; y++)
        for (int x = 0; x < g.sw; x++) {
            Parity found;
            for (int i = 0; i < g.kh; i++)
                for (int j = 0; j < g.kw; j++)
                    if ((y + g.ph - i * g.dh) % g.sh == 0 && (x + g.pw - j * g.dw) % g.sw == 0)
                        found.i.push_back(i), found.j.push_back(j),
                            found.which.push_back(groups.depthwise() ? i * g.kw + j : packed++);
            parities.push_back(found);
        }

    share_out(items.count(), threads, [&](Share& share) {
        Ring ring(window + together - 1, g.oh, static_cast<size_t>(columns) * step);
        const size_t out_row = static_cast<size_t>(v.w) * C;
        float* out = floats(out_row * together);
        std::vector<ptrdiff_t> at(static_cast<size_t>(g.kh) * g.kw * together);
        std::vector<Taps> taps(together);
        for (int item : share) {
            const int n = items.first_image(item), r0 = items.first_row(item),
                      rows = v.h - r0 < height ? v.h - r0 : height;
            const int first = r0 + g.ph - (g.kh - 1) * g.dh;
            int formed = first > 0 ? (first + g.sh - 1) / g.sh : 0;
            double* mine = sums ? partial.data() + static_cast<size_t>(item) * 2 * n_ys * C : nullptr;
            for (int r = r0; r < r0 + rows; r += together) {
                const int here = r0 + rows - r < together ? r0 + rows - r : together;
                for (; formed <= (r + here - 1 + g.ph) / g.sh && formed < g.oh; formed++)
                    dy_row<S>(path, n, formed,
                              ring.rows + ring.at(formed) + static_cast<ptrdiff_t>(left) * step, step);
                for (int x = 0; x < g.sw && x < v.w; x++) {
                    for (int k = 0; k < here; k++) {
                        const Parity& own = parities[static_cast<size_t>((r + k) % g.sh * g.sw + x)];
                        taps[k] = {at.data() + static_cast<ptrdiff_t>(k) * g.kh * g.kw, own.which.data(),
                                   static_cast<int>(own.i.size())};
                        for (int t = 0; t < taps[k].n; t++)
                            at[k * g.kh * g.kw + t] =
                                ring.at((r + k + g.ph - own.i[t] * g.dh) / g.sh) +
                                static_cast<ptrdiff_t>((x + g.pw - own.j[t] * g.dw) / g.sw + left) * step;
                    }
                    groups.rows(ring.rows, taps.data(), here, out + static_cast<ptrdiff_t>(x) * C, out_row,
                                static_cast<ptrdiff_t>(g.sw) * C, (v.w - x + g.sw - 1) / g.sw);
                }
                for (int k = 0; k < here; k++)
                    finish_row<S>(v, (static_cast<size_t>(n) * v.h + r + k) * v.w, out + k * out_row, 0, v.c,
                                  C, n_ys, mine);
            }
        }
        free(out);
    });
    for (int a = 0; sums && a < 2 * n_ys; a++)
        for (int c = 0; c < v.c; c++) {
            double sum = 0;
            for (int item = 0; item < items.count(); item++)
                sum += partial[(static_cast<size_t>(item) * 2 * n_ys + a) * C + c];
            sums[static_cast<size_t>(a) * v.c + c] = sum;
        }
}

void convolve_groups(const Geometry& g, const Source& source, const float* weights, void* y,
                     double* statistics, int threads) {
    if (source.half) convolve(g, source, weights, static_cast<bfloat16*>(y), statistics, threads);
    else convolve(g, source, weights, static_cast<float*>(y), statistics, threads);
}

void gradient_groups(const Value& value, const Path& path, double* sums, int threads) {
    (value.half ? gradient<bfloat16> : gradient<float>)(value, path, sums, threads);
}
