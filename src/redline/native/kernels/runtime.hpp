// One parallel region a call: every thread runs the whole program and meets the others at
// barriers only. Workers spin for a bounded time after a call, then sleep on a futex.
#pragma once
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "vec.hpp"

#if defined(__x86_64__)
#define RL_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RL_PAUSE() __asm__ volatile("yield")
#else
#define RL_PAUSE() ((void)0)
#endif

namespace rl {

RL_INLINE uint64_t now_ns() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// What is left of a thread's part, [first, last) in one word.
struct alignas(64) Part {
    uint64_t left;
};

struct Context {
    const char* weights;
    char* arena;
    const void* const* in;
    void* const* out;
    int threads;
    bool profile;
    uint64_t* times;  // ns of each group, one after the other
    void (*program)(Context&, int);
    size_t arena_bytes;
    pid_t owner;
    pthread_t* workers;
    Part* parts;  // of every thread
    long sizes[2];  // of free dims, in this call
    alignas(64) uint32_t generation;  // one more for each call; workers wait for it to change
    uint32_t sleepers;
    uint32_t stop;
    alignas(64) uint32_t arrived;
    alignas(64) uint32_t phase;  // of the barrier
};

struct Worker {
    Context* context;
    int index;
};

inline void futex(uint32_t* word, int what, uint32_t value) {
    syscall(SYS_futex, word, what | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

RL_INLINE uint64_t packed(long first, long last) { return (uint64_t)last << 32 | (uint64_t)first; }

// Gives each thread its part of [0, n), while none of them claims anything.
inline void deal(Context& c, long n) {
    for (int i = 0; i < c.threads; ++i) {
        const Span part = share(n, i, c.threads);
        __atomic_store_n(&c.parts[i].left, packed(part.first, part.last), __ATOMIC_RELAXED);
    }
}

// What thread t does next: the first half of what is left of its part or, if nothing is, the last
// half of what another has left; false when all is taken. Whom the machine slows down does less.
inline bool claim(Context& c, int t, Span& taken) {
    for (int i = 0; i < c.threads; ++i) {
        uint64_t& left = c.parts[(t + i) % c.threads].left;
        uint64_t was = __atomic_load_n(&left, __ATOMIC_RELAXED), rest;
        do {
            const long first = (long)(uint32_t)was, last = (long)(was >> 32);
            if (first == last) break;
            const long middle = (first + last + !i) / 2;
            taken = i ? Span{middle, last} : Span{first, middle};
            rest = i ? packed(first, middle) : packed(middle, last);
            if (__atomic_compare_exchange_n(&left, &was, rest, false, __ATOMIC_RELAXED,
                                            __ATOMIC_RELAXED))
                return true;
        } while (true);
    }
    return false;
}

// Everyone before it has finished what they did when anyone goes on; [0, n) can then be claimed.
RL_INLINE void barrier(Context& c, long n = 0) {
    const uint32_t phase = __atomic_load_n(&c.phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&c.arrived, 1, __ATOMIC_ACQ_REL) == (uint32_t)c.threads) {
        if (n) deal(c, n);
        __atomic_store_n(&c.arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&c.phase, phase + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&c.phase, __ATOMIC_ACQUIRE) == phase;) {
        RL_PAUSE();
        if (++spins > 2000) {  // the other thread is not running: give it the core
            sched_yield();
            spins = 0;
        }
    }
}

constexpr uint64_t SPIN_NS = RL_SPIN_NS;

inline uint32_t wait_for_call(Context& c, uint32_t seen) {
    const uint64_t until = now_ns() + SPIN_NS;
    for (;;) {
        for (int i = 0; i < 64; ++i) {
            const uint32_t now = __atomic_load_n(&c.generation, __ATOMIC_ACQUIRE);
            if (now != seen) return now;
            RL_PAUSE();
        }
        if (now_ns() > until) break;
    }
    __atomic_add_fetch(&c.sleepers, 1, __ATOMIC_SEQ_CST);
    uint32_t now;
    while ((now = __atomic_load_n(&c.generation, __ATOMIC_SEQ_CST)) == seen)
        futex(&c.generation, FUTEX_WAIT, seen);
    __atomic_sub_fetch(&c.sleepers, 1, __ATOMIC_SEQ_CST);
    return now;
}

inline void* work(void* argument) {
    const Worker worker = *(Worker*)argument;
    free(argument);
    Context& c = *worker.context;
    for (uint32_t seen = 0;;) {
        seen = wait_for_call(c, seen);
        if (__atomic_load_n(&c.stop, __ATOMIC_ACQUIRE)) return nullptr;
        c.program(c, worker.index);
        barrier(c);
    }
}

inline bool start_workers(Context& c) {
    c.owner = getpid();
    c.generation = c.sleepers = c.arrived = c.phase = 0;
    for (int i = 1; i < c.threads; ++i) {
        Worker* worker = (Worker*)malloc(sizeof(Worker));
        if (!worker) return false;
        *worker = {&c, i};
        if (pthread_create(&c.workers[i], nullptr, work, worker)) {
            free(worker);
            return false;
        }
    }
    return true;
}

// A process that was forked has none of its parent's threads: the flag makes the next call start
// them anew.
inline bool& forked() {
    static bool flag = false;
    return flag;
}

inline Context* open(const void* weights, size_t arena_bytes, int groups, int threads,
                     void (*program)(Context&, int)) {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { forked() = true; });
    (void)registered;
    Context* c = (Context*)aligned_alloc(64, (sizeof(Context) + 63) / 64 * 64);
    if (!c) return nullptr;
    memset((void*)c, 0, sizeof(Context));
    c->weights = (const char*)weights;
    c->threads = threads;
    c->program = program;
    const size_t page = (size_t)2 << 20;
    c->arena_bytes = (arena_bytes + page - 1) / page * page + page;
    c->arena = (char*)aligned_alloc(arena_bytes > page ? page : 64, c->arena_bytes);
    c->times = (uint64_t*)calloc((size_t)groups + 1, sizeof(uint64_t));
    c->workers = (pthread_t*)calloc((size_t)threads, sizeof(pthread_t));
    c->parts = (Part*)aligned_alloc(64, (size_t)threads * sizeof(Part));
    if (!c->arena || !c->times || !c->workers || !c->parts) return nullptr;
    if (arena_bytes > page) madvise(c->arena, c->arena_bytes, MADV_HUGEPAGE);
    memset(c->arena, 0, arena_bytes ? arena_bytes : 1);  // halos stay zero from here on
    return start_workers(*c) ? c : nullptr;
}

inline int run(Context& c, const void* const* in, void* const* out) {
    c.in = in;
    c.out = out;
    if (c.threads == 1) {
        c.program(c, 0);
        return 0;
    }
    if (__builtin_expect(forked(), 0) && c.owner != getpid() && !start_workers(c)) return 1;
    __atomic_add_fetch(&c.generation, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&c.sleepers, __ATOMIC_SEQ_CST)) futex(&c.generation, FUTEX_WAKE, 1 << 30);
    c.program(c, 0);
    barrier(c);
    return 0;
}

inline void close(Context* c) {
    if (!c) return;
    if (c->owner == getpid() && c->threads > 1) {
        __atomic_store_n(&c->stop, 1, __ATOMIC_RELEASE);
        __atomic_add_fetch(&c->generation, 1, __ATOMIC_SEQ_CST);
        futex(&c->generation, FUTEX_WAKE, 1 << 30);
        for (int i = 1; i < c->threads; ++i) pthread_join(c->workers[i], nullptr);
    }
    ::free(c->arena);
    ::free(c->times);
    ::free(c->workers);
    ::free(c->parts);
    ::free(c);
}

}  // namespace rl
