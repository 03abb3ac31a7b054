// y = conv(z) with y's statistics, z formed as it is loaded and, if asked, written once.
//
// Layout   activations (N, H, W, C); packed weights by blocks of output channels, (taps, C_in, block) or Winograd's ((M+2)², C_in, block).
// Traffic  reads what makes z, writes y, and z and its mask if asked: each once.
#include <vector>
#include "base.h"
#include "calls.h"
#include "geometry.h"
#include "items.h"
#include "parallel.h"
#include "source.h"
#include "winograd.h"

// M: Winograd's F(M×M, 3×3), or 0 for the direct sum.
// S: what activations are stored in. statistics (2, C) double, of y as it is stored: mean and biased variance, by Chan, Golub, LeVeque's merge of the items' (count, mean, M2) in order; may be null.
template <typename S>
static void convolve(const Geometry& g, const Source& s, const float* weights, int M, S* y, double* statistics, int threads) {
    const int OC = round_up(g.oc, L), TW = M ? (g.ow + M - 1) / M : 0;
    const int OW = M ? M * TW : g.ow;
    const int reach = (g.kw - 1) * g.dw + (M ? OW : (g.ow - 1) * g.sw + 1);
    const int PW = reach > g.w + g.pw ? reach : g.w + g.pw;  // columns of the padded image
    const int K = M ? round_up(g.c, L) : g.c;
    const Items items = cut(g.n, g.oh, sizeof(float) * (static_cast<size_t>(g.sh) * PW * K + static_cast<size_t>(OW) * OC), M ? (g.oh + M - 1) / M * TW : 0, M ? M : 1, sizeof(float) * (M ? (M + 2) * (M + 2) : g.kh * g.kw) * static_cast<size_t>(K) * OC);
    const int TH = M ? (items.rows + M - 1) / M : 0, OH = M ? M * TH : items.rows;  // rows of the output buffer
    const int PH = (OH - 1) * g.sh + (g.kh - 1) * g.dh + 1;
    const size_t padded_size = static_cast<size_t>(PH) * PW * K, out_size = static_cast<size_t>(OH) * OW * OC;
    std::vector<Tap> taps;
    for (int i = 0; i < g.kh; i++)
        for (int j = 0; j < g.kw; j++) taps.push_back({(static_cast<ptrdiff_t>(i) * g.dh * PW + j * g.dw) * K, static_cast<ptrdiff_t>(i * g.kw + j) * K});
    std::vector<double> partial(statistics ? static_cast<size_t>(items.count()) * 3 * OC : 0);

    share_out(items.count(), threads, [=, &g, &s, &taps, &partial](Share& share) {
        float* padded = floats(items.images * padded_size);
        float* out = floats(items.images * out_size);
        memset(padded, 0, sizeof(float) * items.images * padded_size);
        float* work = M ? floats(winograd_work(M, K, OC)) : nullptr;
        std::vector<float> pivot(OC), unread(static_cast<size_t>(g.w) * g.c);
        for (int item : share) {
            const int n0 = items.first_image(item), r0 = items.first_row(item);
            const int images = g.n - n0 < items.images ? g.n - n0 : items.images;
            const int rows = g.oh - r0 < items.rows ? g.oh - r0 : items.rows;
            const int top = r0 * g.sh - g.ph;                                   // the source row that the buffer's first holds
            const int own = r0 * g.sh, next = (r0 + rows) * g.sh, beyond = r0 + rows == g.oh || next > g.h ? g.h : next;  // the source rows whose z this item writes
            for (int i = 0; i < images; i++) {
                for (int b = 0; b < PH; b++) {
                    const int r = top + b;
                    float* row = padded + i * padded_size + static_cast<size_t>(b) * PW * K + static_cast<size_t>(g.pw) * K;
                    if (r < 0 || r >= g.h) {
                        memset(row, 0, sizeof(float) * g.w * K);
                        continue;
                    }
                    Source here = s;
                    if (r < own || r >= beyond) here.z = nullptr, here.mask = nullptr;
                    const size_t first = (static_cast<size_t>(n0 + i) * g.h + r) * g.w;
                    form<S>(here, first, g.w, g.c, row, K);
                }
                if (s.z || s.mask)
                    for (int r = own; r < beyond; r++)
                        if (r >= top + PH) form<S>(s, (static_cast<size_t>(n0 + i) * g.h + r) * g.w, g.w, g.c, unread.data(), g.c);
            }
            if (M) {
                (M == 4 ? winograd<4> : winograd<2>)(padded, images, PH, PW, K, weights, out, OW, TH, TW, OC, false, work);
            } else {
                for (int i = 0; i < images; i++)
                    blocks(OC, [&](int c, auto V) {
                        const float* w = weights + static_cast<size_t>(c) * taps.size() * K;
                        for (int r = 0; r < rows; r++)
                            pixels<V(), PIXELS<V()>>(padded + i * padded_size + static_cast<size_t>(r) * g.sh * PW * K, g.sw * K, taps.data(), static_cast<int>(taps.size()), K, w,
                                                   out + i * out_size + static_cast<size_t>(r) * OW * OC + c, OC, g.ow, false);
                    });
            }
            double* mine = statistics ? partial.data() + static_cast<size_t>(item) * 3 * OC : nullptr;
            memcpy(pivot.data(), out, sizeof(float) * OC);  // sums are taken about the item's first pixel
            for (int i = 0; i < images; i++)
                for (int r = 0; r < rows; r++) {
                    const float* from = out + i * out_size + static_cast<size_t>(r) * OW * OC;
                    S* to = y + ((static_cast<size_t>(n0 + i) * g.oh + r0 + r) * g.ow) * g.oc;
                    across(g.oc, [&](int c, auto k) {
                        const vec about = load(pivot.data() + c);
                        vec sum = {}, square = {};
                        for (int q = 0; q < g.ow; q++) {
                            const vec v = as_stored(to, load(from + q * OC + c)), d = v - about;
                            store_some(to + q * g.oc + c, v, k);
                            sum += d, square += d * d;
                        }
                        if (mine)
                            for (int l = 0; l < L; l++) mine[OC + c + l] += sum[l], mine[2 * OC + c + l] += square[l];
                    });
                }
            if (mine)
                for (int c = 0; c < OC; c++) mine[c] = pivot[c];
        }
        free(padded), free(out), free(work);
    });
    if (!statistics) return;
    std::vector<double> means(OC), m2s(OC);  // a vector of channels at a time: the divisions take as long as a small convolution
    double count = 0;
    for (int item = 0; item < items.count(); item++) {
        const double* p = partial.data() + static_cast<size_t>(item) * 3 * OC;
        const int images = g.n - items.first_image(item) < items.images ? g.n - items.first_image(item) : items.images;
        const int rows = g.oh - items.first_row(item) < items.rows ? g.oh - items.first_row(item) : items.rows;
        const double n = static_cast<double>(images) * rows * g.ow, total = count + n;
        double *mean = means.data(), *m2 = m2s.data();
        for (int c = 0; c < OC; c++) {
            const double d = p[c] + p[OC + c] / n - mean[c];
            m2[c] += p[2 * OC + c] - p[OC + c] * p[OC + c] / n + d * d * count * n / total;
            mean[c] += d * n / total;
        }
        count = total;
    }
    for (int c = 0; c < g.oc; c++) statistics[c] = means[c], statistics[g.oc + c] = m2s[c] > 0 || m2s[c] != m2s[c] ? m2s[c] / count : 0;
}

extern "C" void fastbn_convolve(const Geometry* geometry, const Source* source, const float* weights, int M, void* y, double* statistics, int threads) {
    if (source->half)
        convolve(*geometry, *source, weights, M, static_cast<bfloat16*>(y), statistics, threads);
    else
        convolve(*geometry, *source, weights, M, static_cast<float*>(y), statistics, threads);
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
