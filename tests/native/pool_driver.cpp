// Checks the CPU kernels' threads by themselves: their own, or with an argument "openmp" those of OpenMP.
// Prints what went wrong and exits with 1; prints nothing and exits with 0.
#include <sys/wait.h>
#include <unistd.h>
#include <cfenv>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>
#include "threads/parallel.h"

using Function = void (*)(void*);
extern "C" void fastbn_openmp(void (*parallel)(Function, void*, unsigned, unsigned));
#ifdef _OPENMP
extern "C" void GOMP_parallel(Function, void*, unsigned, unsigned);
#endif

static int check(bool right, const char* what, int n = 0, int threads = 0) {
    if (!right) printf("%s (n %d, threads %d)\n", what, n, threads);
    return !right;
}

// Every item once, whoever takes it; memory of a thread's own is that thread's alone.
static int every_item_once() {
    int wrong = 0;
    for (int n : {0, 1, 2, 3, 7, 64, 1000})
        for (int threads : {-1, 0, 1, 2, 3, 5, 16}) {
            std::vector<int> times(static_cast<size_t>(n), 0);
            parallel(n, threads, [&](int i) { times[i]++; });
            wrong += check(times == std::vector<int>(static_cast<size_t>(n), 1),
                "an item was left out or done twice", n, threads);
            std::atomic<int> shares{0}, items{0};
            share_out(n, threads, [&](Share& share) {
                shares++;
                int mine = 0;
                for (int i : share) mine += i >= 0;
                items += mine;
            });
            wrong += check(items == n, "the shares do not make up the whole", n, threads);
            wrong += check(
                shares <= (threads < 1 ? n > 0 : threads), "more threads than were asked for", n, threads);
        }
    return wrong;
}

// A loop goes on where one of its threads is held up: the others take what that one began with.
static int held_up() {
    std::atomic<int> done{0};
    parallel(64, 2, [&](int i) {
        if (i == 0)
            while (done < 63) std::this_thread::yield();
        done++;
    });
    return check(done == 64, "a thread waited for another");
}

static int several_callers() {
    std::vector<long> sums(6, 0);
    std::vector<std::thread> callers;
    for (size_t c = 0; c < sums.size(); c++)
        callers.emplace_back([&sums, c] {
            for (int round = 0; round < 200; round++) {
                std::vector<int> values(100);
                parallel(100, 1 + static_cast<int>(c) % 4, [&](int i) { values[i] = i; });
                sums[c] += std::accumulate(values.begin(), values.end(), 0);
            }
        });
    for (auto& caller : callers) caller.join();
    return check(sums == std::vector<long>(6, 200 * 4950), "callers at once disturb one another");
}

static int nested() {
    std::atomic<int> done{0};
    parallel(8, 3, [&](int) { parallel(8, 3, [&](int) { done++; }); });
    return check(done == 64, "a loop within a loop");
}

// Loops of one team, with pauses in which its threads fall asleep; the caller's rounding is that of every
// item, and a thread of OpenMP's has its own again afterwards.
static int one_team() {
    int wrong = 0;
    const int before = std::fegetround();
    std::fesetround(FE_UPWARD);
    hold_team(3, [&] {
        for (int round = 0; round < 50; round++) {
            if (round % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
            std::atomic<int> items{0}, upward{0};
            parallel(40, 1 + round % 5, [&](int) { items++, upward += std::fegetround() == FE_UPWARD; });
            wrong += check(items == 40 && upward == 40, "a loop of a team");
        }
    });
    std::fesetround(before);
#ifdef _OPENMP
    std::atomic<int> kept{0};
#pragma omp parallel num_threads(3)
    kept += std::fegetround() == before;
    wrong += check(kept == 3, "a thread of OpenMP's keeps a caller's rounding");
#endif
    return wrong;
}

// The child has none of the parent's threads, whatever they did at that moment.
static int forked() {
    int wrong = 0;
    std::atomic<bool> stop{false};
    std::thread busy([&] {
        while (!stop) parallel(16, 3, [](int) {});
    });
    for (int round = 0; round < 20; round++) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(100);  // far beyond what it takes, on a busy machine too
            std::atomic<int> done{0};
            parallel(100, 3, [&](int) { done++; });
            parallel(100, 3, [&](int) { done++; });
            _exit(done == 200 ? 0 : 1);
        }
        int status = 0;
        waitpid(child, &status, 0);
        wrong += check(status == 0, "a forked child");
    }
    stop = true;
    busy.join();
    return wrong;
}

int main(int argc, char** argv) {
    const auto asked = [&](const char* word) { return argc > 1 && strcmp(argv[1], word) == 0; };
#ifdef _OPENMP
    if (asked("openmp")) fastbn_openmp(GOMP_parallel);
#endif
    int wrong = every_item_once() + held_up() + several_callers() + nested() + one_team();
    if (!asked("no fork")) wrong += forked();  // ThreadSanitizer forbids new threads after a fork of several
    return wrong > 0;
}
