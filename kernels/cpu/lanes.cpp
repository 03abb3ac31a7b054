// How many floats a vector holds in this build, by which packed weights are laid out, and by which
// instructions it computes.
#include "base.h"

extern "C" int fastbn_lanes() { return L; }

extern "C" const char* fastbn_instructions() {
#if defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "other";
#endif
}
