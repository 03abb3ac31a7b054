// A value's gradient: ds = (Σ convᵀ(dy) + Σ added) · mask with dy = c1·ds + c2·y + c0 formed as it is loaded,
// and, for each of the raw outputs that the value was made of, Σ ds and Σ ds·(y − μ).
//
// Layout   activations (N, H, W, C); packed weights of the flipped, transposed kernel: by blocks of C_in
//          channels, for each parity class of (row mod stride, column mod stride) its taps, (taps, C_out,
//          block); or Winograd's ((M+2)², C_out, block).
// Traffic  reads ds and y of each path, the added terms, the mask or the y that gives it; writes ds: each
//          once.
#include <vector>
#include "base.h"
#include "calls.h"
#include "products/grouped.h"
#include "items.h"
#include "products/multiply.h"
#include "threads/parallel.h"
#include "rows/value.h"
#include "products/weights.h"
#include "products/winograd.h"

// Where a path reads: for each parity class of output pixels, its taps.
struct Class {
    std::vector<ptrdiff_t> taps;
    int first;  // of its taps among all
};

struct Plan {
    Geometry g;
    Winograd way;
    // the padded dy: rows above the first that belongs, columns likewise, its size
    int above, left, PH, PW, K, step, M, TH = 0, TW = 0;
    size_t padded_size;
    std::vector<Class> classes;
    std::vector<int> which;  // the kernel's taps, in the order of the classes
    std::vector<int> place;  // of each tap in that order
};

static int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

static Plan plan_of(const Path& path, int rows, int OW) {
    const Geometry& g = path.g;
    Plan p;
    p.g = g;
    p.way = winograd_of(path.M, g.h, g.w), p.M = p.way.M;
    p.K = p.M ? round_up(g.oc, L) : g.oc, p.step = pixel_step(p.K);
    // dx[r] reads dy[q] with q·s = r + pad − k·d: q from floor((r0 + pad − (k−1)d)/s), relative to r0/s
    p.above = -floor_div(g.ph - (g.kh - 1) * g.dh, g.sh), p.left = -floor_div(g.pw - (g.kw - 1) * g.dw, g.sw);
    if (p.above < 0) p.above = 0;
    if (p.left < 0) p.left = 0;
    p.PH = p.above + (rows - 1 + g.ph) / g.sh + 1, p.PW = p.left + (OW - 1 + g.pw) / g.sw + 1;
    if (p.PW < p.left + g.ow) p.PW = p.left + g.ow;
    if (p.M) p.TH = rows / p.M, p.TW = OW / p.M, p.PH = rows + 2, p.PW = p.PW > OW + 2 ? p.PW : OW + 2;
    p.padded_size = static_cast<size_t>(p.PH) * p.PW * p.step;
    for (int y = 0; y < g.sh; y++)
        for (int x = 0; x < g.sw; x++) {
            Class found{{}, static_cast<int>(p.which.size())};
            for (int i = 0; i < g.kh; i++)
                for (int j = 0; j < g.kw; j++) {
                    const int a = y + g.ph - i * g.dh, b = x + g.pw - j * g.dw;
                    if (a % g.sh || b % g.sw) continue;
                    found.taps.push_back(
                        (static_cast<ptrdiff_t>(a / g.sh + p.above) * p.PW + b / g.sw + p.left) * p.step);
                    p.which.push_back(i * g.kw + j);
                }
            p.classes.push_back(found);
        }
    p.place.resize(p.which.size());
    for (size_t t = 0; t < p.which.size(); t++)
        p.place[static_cast<size_t>(p.which[t])] = static_cast<int>(t);
    return p;
}

// dy of one image's rows, zero outside. S: what is stored.
template <typename S>
static void form_dy(const Path& path, const Plan& p, int n, int first, float* to) {
    const Geometry& g = p.g;
    for (int b = 0; b < p.PH; b++) {
        const int q = first + b;
        float* row = to + (static_cast<size_t>(b) * p.PW + p.left) * p.step;
        if (q < 0 || q >= g.oh) {
            memset(row, 0, sizeof(float) * g.ow * p.step);
            continue;
        }
        dy_row<S>(path, n, q, row, p.step);
    }
}

// out (+)= convᵀ(padded dy) for `rows` rows of each image from row r0 on, channels [c0, c1): for each block
// of channels, panel by panel of its weights, all pixels.
static void transpose(const Path& path, const Plan& p, const float* padded, int images, int r0, int rows,
    int w, float* out, size_t out_size, int OW, int c0, int c1, int C, bool add, ItemPixels& known,
    float* room) {
    const Geometry& g = p.g;
    const Weights weights{path.weights, path.M, g.c, p.K, g.kh * g.kw};
    const size_t image = static_cast<size_t>(rows) * w;
    const bool flat =
        g.kh * g.kw == 1 && g.sh == 1 && g.sw == 1 && p.PW == w && OW == w && p.above == 0 && p.left == 0;
    const bool whole = flat && p.padded_size == image * p.step && out_size == image * C;
    const int columns = flat ? 1 : g.sw, lines = flat ? 1 : rows;
    blocks(c0, c1, [&](int c, int V) {
        const int most = panel_rows(p.K, g.kh * g.kw, V);
        Pixels& pixels = known.of(images, r0, rows, V, [&] {
            Pixels made(Product{V, p.step, static_cast<ptrdiff_t>(g.sw) * C, nullptr, 0, 0, nullptr, 0, false});
            for (int i = 0; i < (whole ? 1 : images); i++)
                for (int r = 0; r < lines; r++)
                    for (int x = 0; x < columns && x < w; x++) {
                        const Class& found = p.classes[static_cast<size_t>((r0 + r) % g.sh * g.sw + x)];
                        // those that are inside of the image
                        int first = 0, last = static_cast<int>(found.taps.size());
                        const auto line_inside = [&](int tap) {
                            const int q = r0 + r + g.ph - p.which[found.first + tap] / g.kw * g.dh;
                            return q >= 0 && q / g.sh < g.oh;
                        };
                        while (!flat && first < last && !line_inside(first)) first++;
                        while (!flat && first < last && !line_inside(last - 1)) last--;
                        const auto inside = [&](int tap, int pixel) {
                            const int q =
                                x + pixel * g.sw + g.pw - p.which[found.first + first + tap] % g.kw * g.dw;
                            return flat || (q >= 0 && q / g.sw < g.ow);
                        };
                        if (first < last || !add)
                            made.add(found.taps.data() + first, found.first + first, last - first,
                                i * p.padded_size + static_cast<size_t>(r / g.sh) * p.PW * p.step,
                                i * out_size + (static_cast<size_t>(r) * OW + x) * C,
                                flat ? static_cast<int>(image) * (whole ? images : 1)
                                     : (w - x + g.sw - 1) / g.sw,
                                inside);
                    }
            return made;
        });
        for (int k = 0; k < p.K; k += most) {
            pixels.product.K = p.K - k < most ? p.K - k : most, pixels.product.add = add || k > 0;
            const float* from =
                weights.backward(c, V, k, pixels.product.K, p.place.data(), room, pixels.product.w_tap);
            pixels.multiply(from, padded + k, out + c);
        }
    });
}

// sums: (n_ys, 2, C) double, Σ ds and Σ ds·(y − μ); may be null.
template <typename S>
static void gradient(const Value& v, const Path* paths, int n_paths, double* sums, int threads) {
    const int C = round_up(v.c, L);
    int unit = 1, most = 1, tiles = 0, n_ys = v.ys[1] ? 2 : v.ys[0] ? 1 : 0;
    size_t weight_bytes = 0, row_bytes = sizeof(float) * static_cast<size_t>(v.w) * C;
    for (int i = 0; i < n_paths; i++) {
        const Geometry& g = paths[i].g;
        const int M = transforms(paths[i].M);
        row_bytes += sizeof(float) * static_cast<size_t>(g.ow + 2) * g.oc / g.sh;
        unit = unit % g.sh ? unit * g.sh : unit;
        weight_bytes += sizeof(float) * (M ? (M + 2) * (M + 2) : g.kh * g.kw) * static_cast<size_t>(g.oc) * C;
        most = M > most ? M : most;
        const Winograd way = winograd_of(paths[i].M, v.h, v.w);
        const int here = M && way.raw ? way.tiles_at_once(round_up(g.oc, L)) : 0;
        tiles = here > tiles ? here : tiles;
    }
    unit = unit % most ? unit * most : unit;
    const int OW = round_up(v.w, most);
    const Items items = tiles
        ? cut_tiles(v.n, v.h, unit, OW / most, tiles, C)
        : cut(v.n, v.h, row_bytes, most > 1 ? static_cast<double>(OW) / (most * most) : v.w, unit,
              weight_bytes, n_paths ? C : 0);
    const int OH = round_up(items.rows, most);
    const size_t out_size = static_cast<size_t>(OH) * OW * C;
    std::vector<Plan> plans;
    size_t padded_most = 0, work_most = 0;
    for (int i = 0; i < n_paths; i++) {
        plans.push_back(plan_of(paths[i], OH, OW));
        const Plan& p = plans.back();
        if (p.padded_size > padded_most) padded_most = p.padded_size;
        const size_t work = p.M ? p.way.work(p.K) : panel_room(p.K, p.g.kh * p.g.kw);
        if (work > work_most) work_most = work;
    }
    std::vector<double> partial(sums ? static_cast<size_t>(items.places()) * 2 * n_ys * C : 0);

    share_out(items.count(), threads, [=, &v, &plans, &partial](Share& share) {
        float* padded = floats(items.images * padded_most + 1);
        float* out = floats(items.images * out_size);
        float* work = floats(work_most + 1);
        memset(padded, 0, sizeof(float) * items.images * padded_most);
        std::vector<ItemPixels> known(n_paths);
        int formed = -1;
        for (int item : share) {
            const int n0 = items.first_image(item), r0 = items.first_row(item),
                      c0 = items.first_channel(item, C), c1 = items.last_channel(item, C);
            const int images = v.n - n0 < items.images ? v.n - n0 : items.images;
            const int rows = v.h - r0 < items.rows ? v.h - r0 : items.rows;
            for (int i = 0; i < n_paths; i++) {
                const Plan& p = plans[i];
                if (n_paths > 1) memset(padded, 0, sizeof(float) * images * p.padded_size);
                const bool reads = n_paths > 1 || formed != items.place(item);
                if (reads)
                    for (int m = 0; m < images; m++)
                        form_dy<S>(paths[i], p, n0 + m, r0 / p.g.sh - p.above, padded + m * p.padded_size);
                if (p.M)
                    winograd(p.way,
                        {padded, images, p.PH, p.PW, p.K, p.step,
                            {paths[i].weights, paths[i].M, true, p.g.c, p.g.oc}, out, OW, p.TH, p.TW, C, c0,
                            c1, i > 0, reads, work});
                else
                    transpose(paths[i], p, padded, images, r0, rows, v.w, out, out_size, OW, c0, c1, C, i > 0,
                        known[i], work);
            }
            formed = items.place(item);
            if (n_paths == 0) memset(out, 0, sizeof(float) * images * out_size);
            double* mine =
                sums ? partial.data() + static_cast<size_t>(items.place(item)) * 2 * n_ys * C : nullptr;
            for (int m = 0; m < images; m++)
                for (int r = 0; r < rows; r++) {
                    float* row = out + m * out_size + static_cast<size_t>(r) * OW * C;
                    const size_t pixel = (static_cast<size_t>(n0 + m) * v.h + r0 + r) * v.w;
                    finish_row<S>(v, pixel, row, c0, c1 < v.c ? c1 : v.c, C, n_ys, mine);
                }
        }
        free(padded), free(out), free(work);
    });
    if (!sums) return;
    for (int a = 0; a < 2 * n_ys; a++)
        for (int c = 0; c < v.c; c++) {
            double sum = 0;
            for (int place = 0; place < items.places(); place++)
                sum += partial[(static_cast<size_t>(place) * 2 * n_ys + a) * C + c];
            sums[static_cast<size_t>(a) * v.c + c] = sum;
        }
}

extern "C" void fastbn_gradient(
    const Value* value, const Path* paths, int n_paths, double* sums, int threads) {
    if (n_paths && paths->g.groups > 1)
        return gradient_groups(*value, *paths, sums, threads);  // which is alone
    (value->half ? gradient<bfloat16> : gradient<float>)(*value, paths, n_paths, sums, threads);
}
