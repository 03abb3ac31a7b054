// y = conv(z) with y's statistics, z formed as it is loaded and, if asked, written once.
//
// Layout   activations (N, H, W, C); packed weights by blocks of output channels, (taps, C_in, block) or
//          Winograd's ((M+2)², C_in, block).
// Traffic  reads what makes z, writes y, and z and its mask if asked: each once.
#include <vector>
#include "base.h"
#include "calls.h"
#include "structs.h"
#include "products/grouped.h"
#include "items.h"
#include "products/multiply.h"
#include "threads/parallel.h"
#include "rows/moments.h"
#include "rows/source.h"
#include "rows/statistics.h"
#include "products/weights.h"
#include "products/winograd.h"

// The direct sum for `rows` rows of each image from row r0 on, channels [c0, c1): for each block of channels,
// panel by panel of its weights, all pixels.
static void direct(const Geometry& g, const Weights& weights, const float* padded, size_t padded_size, int PW,
    int step, float* out, size_t out_size, int OW, int OC, int images, int r0, int rows, int OH, int c0,
    int c1, ItemPixels& known, float* room) {
    const int K = weights.K, taps = g.kh * g.kw;
    const bool flat = taps == 1 && g.sh == 1 && g.sw == 1 && PW == g.ow && OW == g.ow,
               whole = flat && rows == OH;
    blocks(c0, c1, [&](int c, int V) {
        const int most = panel_rows(K, taps, V);
        // a kernel's line lies together, here and there
        const bool lines = most == K && g.dw == 1 && step == K && g.kw > 1 && !Pixels::scatters(V, g.ow);
        Pixels& pixels = known.of(images, r0, rows, V, [&] {
            const int per_line = lines ? 1 : g.kw;
            Pixels made(Product{V, static_cast<ptrdiff_t>(g.sw) * step, OC, nullptr, 0, 0, nullptr, 0, false});
            for (int i = 0; i < g.kh; i++)
                for (int j = 0; j < per_line; j++)
                    made.taps.push_back((static_cast<ptrdiff_t>(i) * g.dh * PW + j * g.dw) * step);
            for (int i = 0; i < (whole ? 1 : images); i++)
                for (int r = 0; r < (flat ? 1 : rows); r++) {
                    int first = 0, last = g.kh;  // the kernel's lines that are inside of the image
                    if (!flat) {
                        const int above = (r0 + r) * g.sh - g.ph;
                        while (first < last && above + first * g.dh < 0) first++;
                        while (first < last && above + (last - 1) * g.dh >= g.h) last--;
                    }
                    const auto inside = [&](int tap, int p) {
                        const int column = p * g.sw - g.pw + tap % g.kw * g.dw;
                        return flat || (column >= 0 && column < g.w);
                    };
                    made.add(made.taps.data() + first * per_line, first * per_line, (last - first) * per_line,
                        i * padded_size + static_cast<size_t>(r) * g.sh * PW * step,
                        i * out_size + static_cast<size_t>(r) * OW * OC,
                        flat ? (whole ? images : 1) * rows * g.ow : g.ow, inside);
                }
            return made;
        });
        for (int k = 0; k < K; k += most) {
            const int here = K - k < most ? K - k : most;
            ptrdiff_t w_tap;
            const float* w = weights.forward(c, V, k, here, room, w_tap);
            pixels.product.K = lines ? K * g.kw : here, pixels.product.w_tap = lines ? K * g.kw : w_tap,
            pixels.product.add = k > 0;
            pixels.multiply(w, padded + k, out + c);
        }
    });
}

// algorithm: see products/weights.h.
// S: what activations are stored in. statistics (2, C) double, of y as it is stored: mean and biased
// variance, by Chan, Golub, LeVeque's merge of the items' (count, mean, M2) in order; may be null.
template <typename S>
static void convolve(const Geometry& g, const Source& s, const float* weights, int algorithm, S* y,
    double* statistics, int threads) {
    const int M = transforms(algorithm), taps = g.kh * g.kw;
    const int OC = round_up(g.oc, L), TW = M ? (g.ow + M - 1) / M : 0;
    const int OW = M ? M * TW : g.ow;
    const int reach = (g.kw - 1) * g.dw + (M ? OW : (g.ow - 1) * g.sw + 1);
    const int PW = reach > g.w + g.pw ? reach : g.w + g.pw;  // columns of the padded image
    const int K = M ? round_up(g.c, L) : g.c, step = pixel_step(K);
    const Winograd way = winograd_of(algorithm, g.h, g.w);
    const Items items = M && way.raw
        ? cut_tiles(g.n, g.oh, M, TW, way.tiles_at_once(K), OC)
        : cut(g.n, g.oh,
              sizeof(float) * (static_cast<size_t>(g.sh) * PW * step + static_cast<size_t>(OW) * OC),
              M ? static_cast<double>(TW) / M : g.ow, M ? M : 1,
              sizeof(float) * (M ? (M + 2) * (M + 2) : taps) * static_cast<size_t>(K) * OC, OC);
    // OH: rows of the output buffer
    const int TH = M ? (items.rows + M - 1) / M : 0, OH = M ? M * TH : items.rows;
    const int PH = (OH - 1) * g.sh + (g.kh - 1) * g.dh + 1;
    const size_t padded_size = static_cast<size_t>(PH) * PW * step,
                 out_size = static_cast<size_t>(OH) * OW * OC;
    const Weights w{weights, algorithm, g.oc, K, taps};
    std::vector<double> partial(statistics ? static_cast<size_t>(items.places()) * 3 * OC : 0);

    share_out(items.count(), threads, [=, &g, &s, &taps, &partial](Share& share) {
        float* padded = floats(items.images * padded_size);
        float* out = floats(items.images * out_size);
        memset(padded, 0, sizeof(float) * items.images * padded_size);
        float* work = floats(M ? way.work(K) : panel_room(K, taps));
        std::vector<float> pivot(OC), unread(static_cast<size_t>(g.w) * g.c);
        ItemPixels known;
        int formed = -1;
        for (int item : share) {
            const int n0 = items.first_image(item), r0 = items.first_row(item),
                      c0 = items.first_channel(item, OC), c1 = items.last_channel(item, OC);
            const int images = g.n - n0 < items.images ? g.n - n0 : items.images;
            const int rows = g.oh - r0 < items.rows ? g.oh - r0 : items.rows;
            const int top = r0 * g.sh - g.ph;  // the source row that the buffer's first holds
            // the source rows whose z this item writes
            const int own = r0 * g.sh, next = (r0 + rows) * g.sh,
                      beyond = r0 + rows == g.oh || next > g.h ? g.h : next;
            // the place's first part also writes z, whichever part this thread took before
            const bool reads = formed != items.place(item) || !c0;
            for (int i = 0; i < images && reads; i++) {
                for (int b = 0; b < PH; b++) {
                    const int r = top + b;
                    float* row = padded + i * padded_size + static_cast<size_t>(b) * PW * step
                        + static_cast<size_t>(g.pw) * step;
                    if (r < 0 || r >= g.h) {
                        memset(row, 0, sizeof(float) * g.w * step);
                        continue;
                    }
                    Source here = s;
                    if (c0 || r < own || r >= beyond) here.z = nullptr, here.mask = nullptr;
                    // between the rows that a kernel shorter than its stride reads
                    if (g.dh == 1 && b % g.sh >= g.kh && !here.z && !here.mask) continue;
                    const size_t first = (static_cast<size_t>(n0 + i) * g.h + r) * g.w;
                    form<S>(here, first, g.w, g.c, row, step);
                }
                if ((s.z || s.mask) && !c0)
                    for (int r = own; r < beyond; r++)
                        if (r >= top + PH)
                            form<S>(s, (static_cast<size_t>(n0 + i) * g.h + r) * g.w, g.w, g.c, unread.data(),
                                g.c);
            }
            formed = items.place(item);
            if (M)
                winograd(way,
                    {padded, images, PH, PW, K, step, {weights, algorithm, false, g.oc, g.c}, out, OW, TH, TW,
                        OC, c0, c1, false, reads, work});
            else
                direct(g, w, padded, padded_size, PW, step, out, out_size, OW, OC, images, r0, rows, OH, c0,
                    c1, known, work);
            double* mine =
                statistics ? partial.data() + static_cast<size_t>(items.place(item)) * 3 * OC : nullptr;
            memcpy(pivot.data(), out, sizeof(float) * OC);  // sums are taken about the item's first pixel
            const int last = c1 < g.oc ? c1 : g.oc;
            for (int i = 0; i < images; i++)
                for (int r = 0; r < rows; r++) {
                    const float* from = out + i * out_size + static_cast<size_t>(r) * OW * OC;
                    S* to = y + ((static_cast<size_t>(n0 + i) * g.oh + r0 + r) * g.ow) * g.oc;
                    store_row(from, g.ow, c0, last, g.oc, OC, pivot.data(), to, mine);
                }
            if (mine)
                for (int c = c0; c < c1; c++) mine[c] = pivot[c];
        }
        free(padded), free(out), free(work);
    });
    if (!statistics) return;
    // a vector of channels at a time: the divisions take as long as a small convolution
    std::vector<double> means(OC), m2s(OC);
    double count = 0;
    for (int place = 0; place < items.places(); place++) {
        const double* p = partial.data() + static_cast<size_t>(place) * 3 * OC;
        const int item = place * items.parts;
        const int images =
            g.n - items.first_image(item) < items.images ? g.n - items.first_image(item) : items.images;
        const int rows =
            g.oh - items.first_row(item) < items.rows ? g.oh - items.first_row(item) : items.rows;
        const double n = static_cast<double>(images) * rows * g.ow, total = count + n;
        double *mean = means.data(), *m2 = m2s.data();
        for (int c = 0; c < OC; c++) {
            const double d = p[c] + p[OC + c] / n - mean[c];
            m2[c] += p[2 * OC + c] - p[OC + c] * p[OC + c] / n + d * d * count * n / total;
            mean[c] += d * n / total;
        }
        count = total;
    }
    for (int c = 0; c < g.oc; c++)
        statistics[c] = means[c], statistics[g.oc + c] = m2s[c] > 0 || m2s[c] != m2s[c] ? m2s[c] / count : 0;
}

// With no y the convolution copies: its output is its source, of which only the statistics are asked for.
extern "C" void fastbn_convolve(const Geometry* geometry, const Source* source, const float* weights,
    int algorithm, void* y, double* statistics, int threads) {
    if (!y) {
        const long pixels = static_cast<long>(geometry->n) * geometry->oh * geometry->ow;
        moments(source->y, source->half, pixels, geometry->oc, statistics, threads);
    } else if (geometry->groups > 1)
        convolve_groups(*geometry, *source, weights, y, statistics, threads);
    else if (source->half)
        convolve(*geometry, *source, weights, algorithm, static_cast<bfloat16*>(y), statistics, threads);
    else
        convolve(*geometry, *source, weights, algorithm, static_cast<float*>(y), statistics, threads);
}

// z (and its mask) of an activation that no convolution reads first.
extern "C" void fastbn_form(const Source* source, long pixels, int C, int threads) {
    const long step = 256;
    const auto form_some = source->half ? form<bfloat16> : form<float>;
    share_out(static_cast<int>((pixels + step - 1) / step), threads, [&](Share& share) {
        std::vector<float> row(static_cast<size_t>(step) * C);
        for (int item : share) {
            const long p = item * step;
            form_some(*source, p, static_cast<int>(pixels - p < step ? pixels - p : step), C, row.data(), C);
        }
    });
}
