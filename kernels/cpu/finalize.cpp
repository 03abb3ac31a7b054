// What a BatchNorm needs of its statistics, and its gradient of its sums: a few numbers a channel.
#include "base.h"
#include "calls.h"
#include "structs.h"
#include <cmath>

// μ, r = (σ² + ε)^-½, scale = γ·r, shift = β − μ·scale; and the running statistics move.
extern "C" void fastbn_normalise(const Norm* norm) {
    const Norm& n = *norm;
    const int64_t batches = n.counted ? ++*n.counted : 0;
    const double share = n.share < 0. ? 1. / static_cast<double>(batches) : n.share;
    for (int c = 0; c < n.c; c++) {
        const double offset = n.conv_bias ? n.conv_bias[c] : 0.;
        const double mean = n.mean ? n.mean[c] : n.running_mean[c] - offset,
                     var = n.var ? n.var[c] : n.running_var[c];
        const double rstd = 1. / std::sqrt(var + n.eps), scale = n.weight ? rstd * n.weight[c] : rstd;
        float* out = n.out + c;
        out[0] = static_cast<float>(mean), out[n.stride] = static_cast<float>(rstd),
        out[2 * n.stride] = static_cast<float>(scale);
        out[3 * n.stride] = static_cast<float>((n.bias ? n.bias[c] : 0.) - mean * scale);
        if (share != 0.) {
            n.running_mean[c] =
                static_cast<float>(n.running_mean[c] + share * (mean + offset - n.running_mean[c]));
            n.running_var[c] =
                static_cast<float>(n.running_var[c] + share * (var * n.unbiased - n.running_var[c]));
        }
    }
}

// dγ = r·Σ ds·(y − μ) and dβ = Σ ds into out (2 rows, `stride` apart); c1, c2, c0 of dy = c1·ds + c2·y + c0
// into coefficients (3, C).
extern "C" void fastbn_finish(const double* sums, const float* vectors, long vectors_stride, long rows, int C,
    float* out, long stride, float* coefficients) {
    for (int c = 0; c < C; c++) {
        const double mean = vectors[c], rstd = vectors[vectors_stride + c],
                     scale = vectors[2 * vectors_stride + c];
        const double dbias = sums[c], dweight = sums[C + c] * rstd,
                     c2 = -scale * rstd * dweight / static_cast<double>(rows);
        out[c] = static_cast<float>(dweight), out[stride + c] = static_cast<float>(dbias);
        coefficients[c] = static_cast<float>(scale);
        coefficients[C + c] = static_cast<float>(c2);
        coefficients[2 * C + c] = static_cast<float>(-scale * dbias / static_cast<double>(rows) - c2 * mean);
    }
}
