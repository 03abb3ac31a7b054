// Carries out one call of the CPU kernels on another machine or an emulator of it: read from stdin, its
// memory written to stdout.
//
// In    int64: threads, n_blobs, n_patches; the blobs' sizes; the patches, (blob, offset, points to blob,
// offset) each; the blobs.
//       The first blob is the call itself, a Step of structs.h; the others are its structures and its
//       tensors.
// Out   the blobs. Exit code 3 where a kernel wrote outside of them.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" {
void fastbn_play(
    const void* steps, long n_steps, const void* patches, long n_patches, char* const* memory, int threads);
int fastbn_lanes();
}

constexpr size_t FENCE = 256;

static void read_all(void* to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes) exit(2);
}

int main(int argc, char** argv) {
    if (argc > 1 && !strcmp(argv[1], "lanes")) return printf("%d\n", fastbn_lanes()) < 0;
    int64_t head[3];
    read_all(head, sizeof head);
    std::vector<int64_t> sizes(static_cast<size_t>(head[1])), patches(static_cast<size_t>(4 * head[2]));
    read_all(sizes.data(), 8 * sizes.size());
    read_all(patches.data(), 8 * patches.size());
    std::vector<char*> blobs;
    for (const int64_t size : sizes) {
        char* whole =
            static_cast<char*>(aligned_alloc(64, (static_cast<size_t>(size) + 2 * FENCE + 63) / 64 * 64));
        memset(whole, 0x5a, FENCE), memset(whole + FENCE + size, 0x5a, FENCE);
        blobs.push_back(whole + FENCE);
        read_all(blobs.back(), static_cast<size_t>(size));
    }
    for (size_t i = 0; i < patches.size(); i += 4) {
        const char* to = blobs[patches[i + 2]] + patches[i + 3];
        memcpy(blobs[patches[i]] + patches[i + 1], &to, sizeof to);
    }
    fastbn_play(blobs[0], 1, nullptr, 0, nullptr, static_cast<int>(head[0]));
    for (size_t i = 0; i < blobs.size(); i++) {
        for (size_t k = 0; k < FENCE; k++)
            if (blobs[i][-1 - static_cast<ptrdiff_t>(k)] != 0x5a || blobs[i][sizes[i] + k] != 0x5a) return 3;
        if (fwrite(blobs[i], 1, sizes[i], stdout) != static_cast<size_t>(sizes[i])) return 2;
    }
    return 0;
}
