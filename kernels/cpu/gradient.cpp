// A value's gradient: ds = (Σ convᵀ(dy) + Σ added) · mask with dy = c1·ds + c2·y + c0 formed as it is loaded, and, for each of the
// raw outputs that the value was made of, Σ ds and Σ ds·(y − μ).
//
// Layout   activations (N, H, W, C); packed weights of the flipped, transposed kernel: by blocks of C_in channels, for each parity
//          class of (row mod stride, column mod stride) its taps, (taps, C_out, block); or Winograd's ((M+2)², C_out, block).
// Traffic  reads ds and y of each path, the added terms, the mask or the y that gives it; writes ds: each once.
#include <vector>
#include "base.h"
#include "calls.h"
#include "items.h"
#include "parallel.h"
#include "value.h"
#include "winograd.h"

// Where a path reads: for each parity class of output pixels, its taps.
struct Class {
    std::vector<Tap> taps;
    ptrdiff_t weight;
};

struct Plan {
    Geometry g;
    int above, left, PH, PW, K, TH = 0, TW = 0;  // the padded dy: rows above the first that belongs, columns likewise, its size
    size_t padded_size;
    std::vector<Class> classes;
};

static int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

static Plan plan_of(const Path& path, int rows, int OW) {
    const Geometry& g = path.g;
    Plan p;
    p.g = g;
    p.K = path.M ? round_up(g.oc, L) : g.oc;
    // dx[r] reads dy[q] with q·s = r + pad − k·d: q from floor((r0 + pad − (k−1)d)/s), relative to r0/s
    p.above = -floor_div(g.ph - (g.kh - 1) * g.dh, g.sh), p.left = -floor_div(g.pw - (g.kw - 1) * g.dw, g.sw);
    if (p.above < 0) p.above = 0;
    if (p.left < 0) p.left = 0;
    p.PH = p.above + (rows - 1 + g.ph) / g.sh + 1, p.PW = p.left + (OW - 1 + g.pw) / g.sw + 1;
    if (p.PW < p.left + g.ow) p.PW = p.left + g.ow;
    if (path.M) p.TH = rows / path.M, p.TW = OW / path.M, p.PH = rows + 2, p.PW = p.PW > OW + 2 ? p.PW : OW + 2;
    p.padded_size = static_cast<size_t>(p.PH) * p.PW * p.K;
    ptrdiff_t weight = 0;
    for (int y = 0; y < g.sh; y++)
        for (int x = 0; x < g.sw; x++) {
            Class found{{}, weight};
            for (int i = 0; i < g.kh; i++)
                for (int j = 0; j < g.kw; j++) {
                    const int a = y + g.ph - i * g.dh, b = x + g.pw - j * g.dw;
                    if (a % g.sh || b % g.sw) continue;
                    found.taps.push_back({(static_cast<ptrdiff_t>(a / g.sh + p.above) * p.PW + b / g.sw + p.left) * p.K, static_cast<ptrdiff_t>(found.taps.size()) * p.K});
                }
            weight += static_cast<ptrdiff_t>(found.taps.size()) * p.K;
            p.classes.push_back(found);
        }
    return p;
}

// dy of one image's rows, zero outside. S: what is stored.
template <typename S>
static void form_dy(const Path& path, const Plan& p, int n, int first, float* to) {
    const Geometry& g = p.g;
    for (int b = 0; b < p.PH; b++) {
        const int q = first + b;
        float* row = to + (static_cast<size_t>(b) * p.PW + p.left) * p.K;
        if (q < 0 || q >= g.oh) {
            memset(row, 0, sizeof(float) * g.ow * p.K);
            continue;
        }
        dy_row<S>(path, n, q, row, p.K);
    }
}

// out (+)= convᵀ(padded dy), `rows` rows from row r0 on.
static void transpose(const Path& path, const Plan& p, const float* padded, int r0, int rows, int w, float* out, int OW, int C, bool add) {
    const Geometry& g = p.g;
    blocks(C, [&](int c, auto V) {
        for (int r = 0; r < rows; r++)
            for (int x = 0; x < g.sw && x < w; x++) {
                const Class& found = p.classes[static_cast<size_t>((r0 + r) % g.sh * g.sw + x)];
                const int count = (w - x + g.sw - 1) / g.sw;
                float* to = out + (static_cast<size_t>(r) * OW + x) * C + c;
                if (found.taps.empty()) {
                    if (!add)
                        for (int q = 0; q < count; q++)
                            for (int v = 0; v < V(); v++) store(to + static_cast<size_t>(q) * g.sw * C + v * L, vec{});
                    continue;
                }
                const float* weights = path.weights + static_cast<size_t>(c) * g.kh * g.kw * p.K + found.weight * V() * L;
                pixels<V(), PIXELS<V()>>(padded + static_cast<size_t>(r / g.sh) * p.PW * p.K, p.K, found.taps.data(), static_cast<int>(found.taps.size()), p.K, weights, to, static_cast<ptrdiff_t>(g.sw) * C, count, add);
            }
    });
}

// sums: (n_ys, 2, C) double, Σ ds and Σ ds·(y − μ); may be null.
template <typename S>
static void gradient(const Value& v, const Path* paths, int n_paths, double* sums, int threads) {
    const int C = round_up(v.c, L);
    int unit = 1, most = 1, n_ys = v.ys[1] ? 2 : v.ys[0] ? 1 : 0;
    size_t weight_bytes = 0, row_bytes = sizeof(float) * static_cast<size_t>(v.w) * C;
    for (int i = 0; i < n_paths; i++) {
        const Geometry& g = paths[i].g;
        row_bytes += sizeof(float) * static_cast<size_t>(g.ow + 2) * g.oc / g.sh;
        unit = unit % g.sh ? unit * g.sh : unit;
        weight_bytes += sizeof(float) * (paths[i].M ? (paths[i].M + 2) * (paths[i].M + 2) : g.kh * g.kw) * static_cast<size_t>(g.oc) * C;
        if (paths[i].M) most = paths[i].M > most ? paths[i].M : most;
    }
    unit = unit % most ? unit * most : unit;
    const int OW = round_up(v.w, most);
    const Items items = cut(v.n, v.h, row_bytes, most > 1 ? round_up(v.h, most) / most * (OW / most) : 0, unit, weight_bytes);
    const int OH = round_up(items.rows, most);
    const size_t out_size = static_cast<size_t>(OH) * OW * C;
    std::vector<Plan> plans;
    size_t padded_most = 0, work_most = 0;
    for (int i = 0; i < n_paths; i++) {
        plans.push_back(plan_of(paths[i], OH, OW));
        const Plan& p = plans.back();
        if (p.padded_size > padded_most) padded_most = p.padded_size;
        const size_t work = paths[i].M ? winograd_work(paths[i].M, p.K, C) : 0;
        if (work > work_most) work_most = work;
    }
    std::vector<double> partial(sums ? static_cast<size_t>(items.count()) * 2 * n_ys * C : 0);

    share_out(items.count(), threads, [&](Share& share) {
        float* padded = floats(items.images * padded_most + 1);
        float* out = floats(items.images * out_size);
        float* work = floats(work_most + 1);
        memset(padded, 0, sizeof(float) * items.images * padded_most);
        for (int item : share) {
            const int n0 = items.first_image(item), r0 = items.first_row(item);
            const int images = v.n - n0 < items.images ? v.n - n0 : items.images;
            const int rows = v.h - r0 < items.rows ? v.h - r0 : items.rows;
            for (int i = 0; i < n_paths; i++) {
                const Plan& p = plans[i];
                if (n_paths > 1) memset(padded, 0, sizeof(float) * images * p.padded_size);
                for (int m = 0; m < images; m++) form_dy<S>(paths[i], p, n0 + m, r0 / p.g.sh - p.above, padded + m * p.padded_size);
                if (paths[i].M)
                    (paths[i].M == 4 ? winograd<4> : winograd<2>)(padded, images, p.PH, p.PW, p.K, paths[i].weights, out, OW, p.TH, p.TW, C, i > 0, work);
                else
                    for (int m = 0; m < images; m++) transpose(paths[i], p, padded + m * p.padded_size, r0, rows, v.w, out + m * out_size, OW, C, i > 0);
            }
            if (n_paths == 0) memset(out, 0, sizeof(float) * images * out_size);
            double* mine = sums ? partial.data() + static_cast<size_t>(item) * 2 * n_ys * C : nullptr;
            for (int m = 0; m < images; m++)
                for (int r = 0; r < rows; r++) {
                    float* row = out + m * out_size + static_cast<size_t>(r) * OW * C;
                    const size_t pixel = (static_cast<size_t>(n0 + m) * v.h + r0 + r) * v.w;
                    across(v.c, [&](int c, auto k) { finish_row<S>(v, pixel, row, c, k, C, n_ys, mine); });
                }
        }
        free(padded), free(out), free(work);
    });
    if (!sums) return;
    for (int a = 0; a < 2 * n_ys; a++)
        for (int c = 0; c < v.c; c++) {
            double sum = 0;
            for (int item = 0; item < items.count(); item++) sum += partial[(static_cast<size_t>(item) * 2 * n_ys + a) * C + c];
            sums[static_cast<size_t>(a) * v.c + c] = sum;
        }
}

extern "C" void fastbn_gradient(const Value* value, const Path* paths, int n_paths, double* sums, int threads) {
    (value->half ? gradient<bfloat16> : gradient<float>)(*value, paths, n_paths, sums, threads);
}
