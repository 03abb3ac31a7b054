// The structures and the enumerations that cross the library's border. fastbn/engine/native/abi.py mirrors
// them, and tests/native/test_native_abi.py compiles this header and compares every size, offset and value.
#pragma once
#include <cstdint>

// An activation function.
enum Function { IDENTITY, RELU, RELU6, HARDSIGMOID, LEAKY_RELU, SILU, HARDSWISH, MISH, GELU, GELU_TANH };

// One of the functions of calls.h, where a call of it is written down.
enum Called : long { CONVOLVE, FORM, GRADIENT, NORMALISE, FINISH };

// A convolution's sizes.
extern "C" struct Geometry {
    int n, h, w, c;    // the source
    int oh, ow, oc;    // the output
    int kh, kw, sh, sw, ph, pw, dh, dw, groups;
};

// What a convolution reads: z = function(scale·y + shift [+ rscale·y_r + rshift | + residual]), formed as it
// is loaded.
extern "C" struct Source {
    int function, half;           // half: y, y_r, residual and z are bfloat16, else float32
    int rows, stride;  // where there are tasks: pixels an image; floats from one task's vectors to the next's
    float slope;                  // the function's, where it has one
    const void* y;                // (N, H, W, C)
    const float *scale, *shift;   // (C,); null: y is z itself
    const void* y_r;              // a projection's raw output, or null
    const float *rscale, *rshift;
    const void* residual;         // (N, H, W, C), or null
    void* z;                      // where to write z, or null
    void* mask;  // where to write what the derivative needs, or null: bits, see store_mask; without a gate n,
                 // (N, H, W, C)
    const int* tasks;  // (N,): whose scale, shift, rscale and rshift each image takes; null: all the same
};

// A way by which gradient comes back to a value: convᵀ(dy) with dy = c1·ds + c2·y + c0.
extern "C" struct Path {
    Geometry g;  // of the forward convolution
    int M;       // an algorithm, see products/weights.h
    const void *ds, *y;         // (N, OH, OW, OC)
    const float *c1, *c2, *c0;  // (OC,); c2 and c0 null where statistics are frozen
    const float* weights;
};

// A value whose gradient is made: how it was formed, what is added, and where its gradient goes.
extern "C" struct Value {
    // half: activations and gradients are bfloat16, the paths' too; else float32
    int n, h, w, c, function, half;
    float slope;                    // the function's, where it has one
    const void* mask;               // the forward's, or null: n is recomputed from ys[0]
    const void* ys[2];              // (N, H, W, C), the raw outputs that the value was made of; null beyond
    const float* means[2];          // (C,)
    const float *scale, *shift;     // (C,), of ys[0]
    const void* added[2];           // (N, H, W, C), or null
    void* ds;                       // (N, H, W, C), out
};

// A BatchNorm: its settings, what it normalises by, and where its vectors go.
extern "C" struct Norm {
    int c;
    const double *mean, *var;      // of the batch, or null: the running ones
    const float *weight, *bias;    // γ and β, or null
    const float* conv_bias;        // of the convolution before, or null: the raw output is without it
    float *running_mean, *running_var;
    int64_t* counted;  // the batches that moved the running statistics, this one not yet among them; or null
    double eps, share, unbiased;  // share: of this batch in them, 0 where they stay, −1 for the mean of all
                                  // counted; unbiased: M/(M − 1)
    float* out;                    // mean, rstd, scale, shift
    long stride;                   // between their rows
};

// A pointer to whatever a function takes there.
struct Pointer {
    void* at;
    template <typename T>
    operator T*() const { return static_cast<T*>(at); }
};

// A call that was written down.
extern "C" struct Step {
    long what;      // one of Called
    Pointer at[5];  // its pointers in order
    long n[4];      // its integers in order, the thread count left out
};

// A pointer that is written anew each time: `offset` bytes into the memory that is given as the `slot`-th.
extern "C" struct Patch {
    char** at;  // a pointer that some step reads
    long slot, offset;
};
