// The activation functions, on vectors: z of n, and the gradient of n from z's. A NaN passes each of them,
// and leaves a mask open.
//
// A function whose derivative has two values has a gate too: what is at or below zero where the mask is
// closed.
#pragma once
#include "base.h"
#include "structs.h"

inline vec clamp(vec t, float low, float high) {
    t = t < low ? splat(low) : t;
    return t > high ? splat(high) : t;
}

// eˣ to two of float32's last bits: 2ᵏ·eʳ with |r| ≤ ln 2 / 2, and Cephes' polynomial for eʳ.
inline vec exponential(vec x) {
    constexpr float magic =
        12582912.f;  // 1.5·2²³: adding it rounds to a whole number, which its lowest bits then hold
    x = clamp(x, -87.f, 88.f);
    const vec shifted = x * 1.44269504f + magic, k = shifted - magic,
              r = x - k * 0.693359375f + k * 2.12194440e-4f;
    const vec p =
        ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
            + 1.6666665459e-1f)
            * r
        + 5.0000001201e-1f;
    const veci power = ((veci)shifted - (veci)splat(magic) + 127) << 23;
    return (p * r * r + r + 1.f) * (vec)power;
}

inline vec sigmoid(vec n) { return 1.f / (1.f + exponential(-n)); }

// The normal distribution's function, by Abramowitz and Stegun 7.1.26: 1.5e-7 at most beside erf.
inline vec normal_cdf(vec n) {
    const vec x = (n < 0.f ? -n : n) * 0.70710678f, t = 1.f / (1.f + 0.3275911f * x);
    const vec p = t
        * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const vec tail = 0.5f * p * exponential(-x * x);
    return n < 0.f ? tail : 1.f - tail;
}

// tanh(ln(1 + eⁿ)), of e = eⁿ.
inline vec tanh_softplus(vec e) { return (e * e + 2.f * e) / (e * e + 2.f * e + 2.f); }

// gelu_tanh(n) = n · sigmoid(2u).
inline vec twice_u(vec n) { return 1.59576912f * (n + 0.044715f * n * n * n); }

template <int F>
inline vec apply(vec n, float slope) {
    if constexpr (F == RELU) return relu(n);
    if constexpr (F == RELU6) return clamp(n, 0.f, 6.f);
    if constexpr (F == HARDSIGMOID) return clamp(n + 3.f, 0.f, 6.f) * (1.f / 6.f);
    if constexpr (F == LEAKY_RELU) return n <= 0.f ? n * slope : n;
    if constexpr (F == SILU) return n * sigmoid(n);
    if constexpr (F == HARDSWISH) return n * (clamp(n + 3.f, 0.f, 6.f) * (1.f / 6.f));
    if constexpr (F == MISH) return n * tanh_softplus(exponential(clamp(n, -87.f, 20.f)));
    if constexpr (F == GELU) return n * normal_cdf(n);
    if constexpr (F == GELU_TANH) return n * sigmoid(twice_u(n));
    return n;
}

// Whether the derivative has two values.
constexpr bool has_gate(int F) { return F == RELU || F == RELU6 || F == HARDSIGMOID || F == LEAKY_RELU; }

template <int F>
inline vec gate(vec n) {
    if constexpr (F == RELU6) return n >= 6.f ? vec{} : n;
    if constexpr (F == HARDSIGMOID) return n >= 3.f ? vec{} : n + 3.f;
    return n;
}

// ds where it is open, and where it is closed.
template <int F>
inline vec opened(vec dz) { return F == HARDSIGMOID ? dz * (1.f / 6.f) : dz; }
template <int F>
inline vec closed(vec dz, float slope) { return F == LEAKY_RELU ? dz * slope : vec{}; }

// ds = dz · function'(n).
template <int F>
inline vec gradient_of(vec dz, vec n, float slope) {
    if constexpr (has_gate(F)) return gate<F>(n) <= 0.f ? closed<F>(dz, slope) : opened<F>(dz);
    if constexpr (F == HARDSWISH) return n <= -3.f ? vec{} : n < 3.f ? dz * (n * (1.f / 3.f) + 0.5f) : dz;
    if constexpr (F == SILU) {
        const vec s = sigmoid(n);
        return dz * (s + n * s * (1.f - s));
    }
    if constexpr (F == MISH) {
        const vec e = exponential(clamp(n, -87.f, 20.f)), t = tanh_softplus(e);
        return dz * (t + n * (1.f - t * t) * (e / (1.f + e)));
    }
    if constexpr (F == GELU) return dz * (normal_cdf(n) + n * 0.39894228f * exponential(-0.5f * n * n));
    if constexpr (F == GELU_TANH) {
        const vec s = sigmoid(twice_u(n));
        return dz * (s + n * s * (1.f - s) * (1.59576912f * (1.f + 0.134145f * n * n)));
    }
    return dz;
}

// f, called with the function as a constant of the compiler's.
template <typename F>
inline void with_function(int function, F f) {
    switch (function) {
    case RELU: return f(std::integral_constant<int, RELU>{});
    case RELU6: return f(std::integral_constant<int, RELU6>{});
    case HARDSIGMOID: return f(std::integral_constant<int, HARDSIGMOID>{});
    case LEAKY_RELU: return f(std::integral_constant<int, LEAKY_RELU>{});
    case SILU: return f(std::integral_constant<int, SILU>{});
    case HARDSWISH: return f(std::integral_constant<int, HARDSWISH>{});
    case MISH: return f(std::integral_constant<int, MISH>{});
    case GELU: return f(std::integral_constant<int, GELU>{});
    case GELU_TANH: return f(std::integral_constant<int, GELU_TANH>{});
    default: return f(std::integral_constant<int, IDENTITY>{});
    }
}
