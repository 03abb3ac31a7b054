// Loops shared out among threads, without a compiler's OpenMP, which not every compiler brings.
//
//     parallel(n, threads, [&](int i) { … });          calls f(i) once for each i in [0, n)
//
//     share_out(n, threads, [&](Share& mine) {         the same for threads that need memory of their own
//         float* work = floats(size);
//         for (int i : mine) { … }
//         free(work);
//     });
//
//     hold_team(threads, [&] { … });                   the loops within find their threads waiting
//
// Which thread takes which item is left to chance, so an item may depend on nothing but its number; sums over
// items are merged afterwards, in the items' order. Several threads may call at once. An exception in a loop
// ends the process.
#pragma once
#include <atomic>

// The items that one thread begins with. Threads that are done with theirs take from the others'.
struct Part {
    alignas(64) std::atomic<int> next;
    int end;
};

// The items that one thread takes, until none is left: a range for a loop.
class Share {
public:
    Share(Part* parts, int count, int first) : parts(parts), at(first), count(count), left(count) {}

    // Whether there is another item; `item` is that one then.
    bool take() {
        for (; left; left--, at = at + 1 < count ? at + 1 : 0) {
            Part& part = parts[at];
            if (part.next.load(std::memory_order_relaxed) >= part.end) continue;
            item = part.next.fetch_add(1, std::memory_order_relaxed);
            if (item < part.end) return true;
        }
        return false;
    }

    struct End {};
    struct Iterator {
        Share& share;
        int operator*() const { return share.item; }
        void operator++() { share.take(); }
        bool operator!=(End) const { return share.left > 0; }
    };
    Iterator begin() { return {*this}; }  // at the item that was taken before the loop was called
    End end() { return {}; }

private:
    Part* parts;
    int at, count, left, item = 0;
};

// Calls body(f, share) in the calling thread and in up to `threads` − 1 others, until all n items are done.
void share_out(int n, int threads, void (*body)(void* f, Share& share), void* f) noexcept;

// Each thread has its own copy of f: what f captures by value then stays in registers, as what it captures by
// reference cannot.
template <typename F>
void share_out(int n, int threads, F f) {
    const auto body = [](void* f, Share& share) {
        F own = *static_cast<F*>(f);
        own(share);
    };
    share_out(n, threads, body, &f);
}

template <typename F>
void parallel(int n, int threads, F f) {
    share_out(n, threads, [&](Share& mine) {
        for (int i : mine) f(i);
    });
}

// Calls f(data) in the calling thread. Loops that it runs share one team of threads, held from here to the
// end.
void hold_team(int threads, void (*f)(void* data), void* data) noexcept;

template <typename F>
void hold_team(int threads, F f) {
    hold_team(threads, [](void* f) { (*static_cast<F*>(f))(); }, &f);
}
