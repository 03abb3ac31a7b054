// Calls that were written down once, carried out again in the memory that they are given this time.
#include "calls.h"
#include "parallel.h"

struct Pointer {
    void* at;
    template <typename T>
    operator T*() const { return static_cast<T*>(at); }
};

extern "C" struct Step {
    long what;      // which of the functions, as fastbn/engine/native/abi.py orders them
    Pointer at[5];  // its pointers in order
    long n[4];      // its integers in order, the thread count left out
};

extern "C" struct Patch {
    char** at;  // a pointer that some step reads
    long slot, offset;
};

extern "C" void fastbn_play(const Step* steps, long n_steps, const Patch* patches, long n_patches, char* const* memory, int threads) {
    for (long i = 0; i < n_patches; i++) *patches[i].at = memory[patches[i].slot] + patches[i].offset;
    hold_team(threads, [&] {
        for (long i = 0; i < n_steps; i++) {
            const Pointer* at = steps[i].at;
            const long* n = steps[i].n;
            switch (steps[i].what) {
            case 0: fastbn_convolve(at[0], at[1], at[2], static_cast<int>(n[0]), at[3], at[4], threads); break;
            case 1: fastbn_form(at[0], n[0], static_cast<int>(n[1]), threads); break;
            case 2: fastbn_gradient(at[0], at[1], static_cast<int>(n[0]), at[2], threads); break;
            case 3: fastbn_normalise(at[0]); break;
            case 4: fastbn_finish(at[0], at[1], n[0], n[1], static_cast<int>(n[2]), at[2], n[3], at[3]); break;
            }
        }
    });
}
