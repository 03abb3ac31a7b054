// Calls that were written down once, carried out again in the memory that they are given this time.
#include "calls.h"
#include "structs.h"
#include "threads/parallel.h"

extern "C" void fastbn_play(
    const Step* steps, long n_steps, const Patch* patches, long n_patches, char* const* memory, int threads) {
    for (long i = 0; i < n_patches; i++) *patches[i].at = memory[patches[i].slot] + patches[i].offset;
    hold_team(threads, [&] {
        for (long i = 0; i < n_steps; i++) {
            const Pointer* at = steps[i].at;
            const long* n = steps[i].n;
            switch (steps[i].what) {
            case CONVOLVE:
                fastbn_convolve(at[0], at[1], at[2], static_cast<int>(n[0]), at[3], at[4], threads);
                break;
            case FORM: fastbn_form(at[0], n[0], static_cast<int>(n[1]), threads); break;
            case GRADIENT: fastbn_gradient(at[0], at[1], static_cast<int>(n[0]), at[2], threads); break;
            case NORMALISE: fastbn_normalise(at[0]); break;
            case FINISH:
                fastbn_finish(at[0], at[1], n[0], n[1], static_cast<int>(n[2]), at[2], n[3], at[3]);
                break;
            }
        }
    });
}
