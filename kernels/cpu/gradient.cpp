// A value's gradient: ds = (Σ convᵀ(dy) + Σ added) · mask with dy = c1·ds + c2·y + c0 formed as it is loaded, and, for each of the
// raw outputs that the value was made of, Σ ds and Σ ds·(y − μ).
//
// Layout   activations (N, H, W, C); packed weights of the flipped, transposed kernel: by blocks of C_in channels, for each parity
//          class of (row mod stride, column mod stride) its taps, (taps, C_out, block); or Winograd's ((M+2)², C_out, block).
// Traffic  reads ds and y of each path, the added terms, the mask or the y that gives it; writes ds: each once.
#include <vector>
#include "base.h"
#include "calls.h"
#include "geometry.h"
#include "items.h"
#include "parallel.h"
#include "winograd.h"

extern "C" struct Path {
    Geometry g;  // of the forward convolution
    int M;       // Winograd's F(M×M, 3×3), or 0 for the direct sum
    const void *ds, *y;         // (N, OH, OW, OC)
    const float *c1, *c2, *c0;  // (OC,); c2 and c0 null where statistics are frozen
    const float* weights;
};

extern "C" struct Value {
    int n, h, w, c, relu, half;     // half: activations and gradients are bfloat16, the paths' too; else float32
    const uint8_t* mask;            // the forward's, or null: it is told again from ys[0]
    const void* ys[2];              // (N, H, W, C), the raw outputs that the value was made of; null beyond
    const float* means[2];          // (C,)
    const float *scale, *shift;     // (C,), of ys[0]
    const void* added[2];           // (N, H, W, C), or null
    void* ds;                       // (N, H, W, C), out
};

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
        const size_t at = (static_cast<size_t>(n) * g.oh + q) * g.ow * g.oc;
        across(g.oc, [&](int c, auto k) {
            const S *ds = static_cast<const S*>(path.ds) + at + c, *y = static_cast<const S*>(path.y) + at + c;
            const vec c1 = load_some(path.c1 + c, k);
            if (!path.c2) {
                for (int x = 0; x < g.ow; x++) store_some(row + x * p.K + c, load_some(ds + x * g.oc, k) * c1, k);
                return;
            }
            const vec c2 = load_some(path.c2 + c, k), c0 = load_some(path.c0 + c, k);
            for (int x = 0; x < g.ow; x++) store_some(row + x * p.K + c, load_some(ds + x * g.oc, k) * c1 + (load_some(y + x * g.oc, k) * c2 + c0), k);
        });
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

// One row's channels c … c+k: added terms, mask, ds, sums; one simple pass each, the row stays in the first-level cache.
template <typename S, typename Some>
static void finish_row(const Value& v, size_t pixel, float* row, int c, Some k, int C, int n_ys, double* sums) {
    const size_t at = pixel * v.c + c;
    float* t = row + c;
    for (const void* term : v.added)
        if (const S* added = static_cast<const S*>(term))
            for (int q = 0; q < v.w; q++) store(t + q * C, load(t + q * C) + load_some(added + at + q * v.c, k));
    if (v.relu && v.mask) {
        const int bytes = mask_bytes(v.c);
        for (int q = 0; q < v.w; q++) store(t + q * C, masked(load(t + q * C), v.mask + (pixel + q) * bytes + c / L * VECTOR_BYTES));
    } else if (v.relu) {
        const vec scale = load_some(v.scale + c, k), shift = load_some(v.shift + c, k);
        for (int q = 0; q < v.w; q++) store(t + q * C, load_some(static_cast<const S*>(v.ys[0]) + at + q * v.c, k) * scale + shift <= 0.f ? vec{} : load(t + q * C));
    }
    vec total = {};
    for (int q = 0; q < v.w; q++) {
        S* to = static_cast<S*>(v.ds) + at + q * v.c;
        const vec ds = as_stored(to, load(t + q * C));
        store_some(to, ds, k);
        if constexpr (!std::is_same_v<S, float>) store(t + q * C, ds);  // the sums are of what is stored
        total += ds;
    }
    if (!sums) return;
    for (int a = 0; a < n_ys; a++) {
        const vec mean = load_some(v.means[a] + c, k);
        vec product = {};
        for (int q = 0; q < v.w; q++) product += load(t + q * C) * (load_some(static_cast<const S*>(v.ys[a]) + at + q * v.c, k) - mean);
        for (int l = 0; l < L; l++) sums[2 * a * C + c + l] += total[l], sums[(2 * a + 1) * C + c + l] += product[l];
    }
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

    share_out(items.count(), threads, [=, &v, &plans, &partial](Share& share) {
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
