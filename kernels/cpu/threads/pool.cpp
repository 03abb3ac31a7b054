// The threads behind parallel.h. They wait for the next loop for some tens of microseconds, then sleep. A
// loop never waits for a thread that has not begun: what nobody took, the caller does, so that beside other
// processes a loop takes no longer than in the calling thread alone.
//
// Where PyTorch brought OpenMP along, the threads are OpenMP's, which serve for as long as a team is held:
// OpenMP's threads spin for milliseconds after each of PyTorch's operations, and threads of our own would
// have to share processors with them. Elsewhere, and in a forked process, which has none of OpenMP's threads,
// they are a pool of the library's own.
#include <pthread.h>
#include <signal.h>
#include <algorithm>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>
#include "threads/parallel.h"

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto SPIN = std::chrono::microseconds(50);

// Waits for `met` without sleeping, for a bounded time. Whether it was met.
template <typename F>
bool spin(F met) {
    const auto until = Clock::now() + SPIN;
    do
        for (int i = 0; i < 16; i++) {
            if (met()) return true;
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("isb");
#endif
        }
    while (Clock::now() < until);
    return met();
}

struct Job {
    void (*body)(void*, Share&);
    void* f;
    std::vector<Part> parts;
    int welcome;              // how many more threads may join
    std::fenv_t environment;  // the caller's rounding and flushing, for the same bits in every thread
    std::atomic<int> active{0};  // threads that joined and have not left

    void run(int first) {
        Share mine(parts.data(), static_cast<int>(parts.size()), first);
        if (mine.take()) body(f, mine);
    }
};

struct Pool {
    std::mutex mutex;  // of all that follows; `published` and a job's `active` may be read without
    std::condition_variable work, done;
    std::vector<Job*> jobs;
    std::atomic<unsigned> published{0};
    int workers = 0, asleep = 0;
    bool full = false;    // the system gives no more threads
    bool closed = false;  // its threads leave

    void grow(int to);
    void serve(int id);
    void close();
};

// The process's own pool: never destroyed, since its threads outlive every static object.
std::atomic<Pool*> current{nullptr};

// OpenMP's GOMP_parallel: calls the function in that many threads, and returns when all have.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<Parallel> openmp{nullptr};
std::atomic<bool> forked{false};
thread_local Pool* team = nullptr;  // of OpenMP's threads, while this thread is one of them

// A forked child has none of the threads, and GNU's OpenMP waits for them there for ever; registered when the
// library is loaded, before any lock could be held.
[[maybe_unused]] const int registered = pthread_atfork(
    nullptr, nullptr, [] { current = nullptr, openmp = nullptr, team = nullptr, forked = true; });

Pool& pool() {
    Pool* there = current;
    if (there) return *there;
    Pool* made = new Pool;
    if (current.compare_exchange_strong(there, made)) return *made;
    delete made;
    return *there;
}

// The mutex is held. Signals are left to the threads of the program.
void Pool::grow(int to) {
    if (workers >= to || full) return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        for (; workers < to; workers++) std::thread(&Pool::serve, this, workers + 1).detach();
    } catch (const std::system_error&) {
        full = true;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Pool::serve(int id) {
    std::unique_lock lock(mutex);
    for (;;) {
        if (closed) return;
        const auto open =
            std::find_if(jobs.begin(), jobs.end(), [](const Job* job) { return job->welcome > 0; });
        if (open == jobs.end()) {
            const unsigned seen = published;
            const auto next = [&] { return published != seen; };
            lock.unlock();
            const bool met = spin(next);
            lock.lock();
            if (met) continue;
            asleep++;
            work.wait(lock, next);
            asleep--;
            continue;
        }
        Job& job = **open;
        job.welcome--, job.active++;
        lock.unlock();
        std::fesetenv(&job.environment);
        job.run(id % static_cast<int>(job.parts.size()));
        lock.lock();
        if (--job.active == 0) done.notify_all();  // from here on the job may be gone
    }
}

void Pool::close() {
    {
        std::lock_guard lock(mutex);
        closed = true, published++;
    }
    work.notify_all();
}

struct Team {
    void (*f)(void*);
    void* data;
    const std::thread::id caller = std::this_thread::get_id();
    Pool pool{};
    std::atomic<int> came{0};

    void enter() {
        team = &pool;
        if (std::this_thread::get_id() == caller) {
            f(data);
            pool.close();
        } else {
            std::fenv_t own;
            std::fegetenv(&own);
            pool.serve(++came);
            std::fesetenv(&own);
        }
        team = nullptr;
    }
};

}  // namespace

extern "C" void fastbn_openmp(Parallel parallel) {
    if (!forked) openmp = parallel;
}

void hold_team(int threads, void (*f)(void*), void* data) noexcept {
    const Parallel parallel = openmp;
    if (threads < 2 || team || !parallel) return f(data);
    Team members{f, data};
    parallel([](void* members) { static_cast<Team*>(members)->enter(); }, &members,
        static_cast<unsigned>(threads), 0);
}

void share_out(int n, int threads, void (*body)(void*, Share&), void* f) noexcept {
    if (n <= 0) return;
    threads = std::clamp(threads, 1, n);
    Job job{body, f, std::vector<Part>(static_cast<size_t>(threads)), threads - 1, {}};
    for (int i = 0; i < threads; i++) {
        job.parts[i].next = static_cast<int>(static_cast<long>(n) * i / threads);
        job.parts[i].end = static_cast<int>(static_cast<long>(n) * (i + 1) / threads);
    }
    if (threads == 1) return job.run(0);

    if (!team && openmp) return hold_team(threads, [&] { share_out(n, threads, body, f); });

    std::fegetenv(&job.environment);
    Pool& shared = team ? *team : pool();
    int sleepers;
    {
        std::lock_guard lock(shared.mutex);
        if (!team) shared.grow(threads - 1);
        shared.jobs.push_back(&job);
        shared.published++;
        sleepers = std::min(shared.asleep, threads - 1);
    }
    for (int i = 0; i < sleepers; i++) shared.work.notify_one();
    job.run(0);
    {
        std::lock_guard lock(shared.mutex);
        shared.jobs.erase(std::find(shared.jobs.begin(), shared.jobs.end(), &job));
    }
    const auto left = [&] { return job.active == 0; };
    if (spin(left)) return;
    std::unique_lock lock(shared.mutex);
    shared.done.wait(lock, left);
}
