// Measures what this machine can do at best, and prints it as JSON on one line.
// usage: machine_probe THREADS BYTES [FLAG...]
//
// FLAG is a CPU flag that the system names (avx2, avx512f): not every compiler can ask the CPU.
// Peak: independent fused multiply-adds on registers. 12 accumulators cover the latency of 4 cycles
// on two ports with room to spare. Bandwidth: reading BYTES, which should be several times the last
// cache. Wake: from notify to the first instruction of a thread that slept on a condition variable.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;
static double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

static const int ACCUMULATORS = 12;
static const long STEPS = 400000;

#define FMA_LOOP(NAME, LANES, ATTRIBUTE)                                                \
  typedef float NAME##_vector __attribute__((vector_size(4 * LANES)));                  \
  ATTRIBUTE static double NAME() {                                                      \
    NAME##_vector sums[ACCUMULATORS], scale, shift;                                     \
    for (int lane = 0; lane < LANES; lane++) scale[lane] = 0.999f, shift[lane] = 1e-3f; \
    for (int i = 0; i < ACCUMULATORS; i++) sums[i] = shift * (float)i;                  \
    for (long step = 0; step < STEPS; step++)                                           \
      for (int i = 0; i < ACCUMULATORS; i++) sums[i] = sums[i] * scale + shift;         \
    volatile float sink = 0;                                                            \
    for (int i = 0; i < ACCUMULATORS; i++)                                              \
      for (int lane = 0; lane < LANES; lane++) sink = sink + sums[i][lane];             \
    return 2.0 * LANES * ACCUMULATORS * STEPS;                                          \
  }

FMA_LOOP(portable, 4, )
#if defined(__x86_64__)
FMA_LOOP(avx2, 8, __attribute__((target("avx2,fma"))))
FMA_LOOP(avx512f, 16, __attribute__((target("avx512f"))))
#endif

struct Choice {
  double (*loop)();
  const char *name;
};

static std::vector<Choice> choices(const std::set<std::string> &flags) {
  std::vector<Choice> found{{portable, "portable"}};
#if defined(__x86_64__)
  if (flags.count("avx2") && flags.count("fma")) found.push_back({avx2, "avx2"});
  if (flags.count("avx512f")) found.push_back({avx512f, "avx512f"});
#else
  (void)flags;
#endif
  return found;
}

// Units a second of `work` in that many threads. They start together, so that making them does not
// count.
template <class Work>
static double rate(int threads, Work work) {
  std::atomic<int> arrived{0};
  std::vector<double> units(threads);
  Clock::time_point start;
  auto run = [&](int index) {
    if (++arrived == threads) start = Clock::now(), ++arrived;
    while (arrived <= threads) std::this_thread::yield();
    units[index] = work(index);
  };
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; i++) pool.emplace_back(run, i);
  run(0);
  for (auto &thread : pool) thread.join();
  double seconds = since(start), total = 0;
  for (double unit : units) total += unit;
  return total / seconds;
}

// The best of rounds for 0.15 s, at least three: a neighbour may take a core for a while.
template <class Work>
static double best_rate(int threads, Work work) {
  double best = 0;
  auto begin = Clock::now();
  for (int round = 0; round < 3 || since(begin) < 0.15; round++)
    best = std::max(best, rate(threads, work));
  return best;
}

static double peak(Choice choice, int threads) {
  return best_rate(threads, [=](int) { return choice.loop(); });
}

struct Buffer {
  size_t count;
  std::unique_ptr<float[]> data;
  explicit Buffer(size_t bytes) : count(bytes / sizeof(float)), data(new float[count]) {}

  // Calls work(first, last) on one thread's share.
  template <class Work>
  double share(int index, int threads, Work work) {
    size_t size = count / threads;
    float *first = data.get() + index * size;
    work(first, first + size);
    return (double)size * sizeof(float);
  }
};

static double read_rate(Buffer &buffer, int threads) {
  return best_rate(threads, [&](int index) {
    return buffer.share(index, threads, [](const float *first, const float *last) {
      float sums[32] = {};
      for (; first + 32 <= last; first += 32)
        for (int lane = 0; lane < 32; lane++) sums[lane] += first[lane];
      volatile float sink = 0;
      for (float sum : sums) sink = sink + sum;
    });
  });
}

static double wake() {
  std::mutex mutex;
  std::condition_variable bell;
  bool ringing = false, over = false;
  Clock::time_point rung;
  std::vector<double> waits;
  std::thread sleeper([&] {
    std::unique_lock<std::mutex> lock(mutex);
    while (!over) {
      bell.wait(lock, [&] { return ringing || over; });
      if (ringing) waits.push_back(since(rung));
      ringing = false;
    }
  });
  for (int i = 0; i <= 101; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // so that it sleeps, too
    std::lock_guard<std::mutex> lock(mutex);
    rung = Clock::now();
    ringing = i < 101;
    over = i == 101;
    bell.notify_one();
  }
  sleeper.join();
  std::sort(waits.begin(), waits.end());
  return waits.empty() ? 0 : waits[waits.size() / 2];
}

int main(int count, char **words) {
  if (count < 3) return std::fprintf(stderr, "usage: machine_probe THREADS BYTES [FLAG...]\n"), 2;
  int threads = std::max(1, std::atoi(words[1]));
  Choice best{portable, "portable"};
  double one = 0;
  for (Choice choice : choices({words + 3, words + count})) {  // a wider vector is not always the faster one
    double found = peak(choice, 1);
    if (found > one) one = found, best = choice;
  }
  Buffer buffer(std::strtoull(words[2], nullptr, 10));
  rate(threads, [&](int index) {  // pages lie near the thread that touches them first
    return buffer.share(index, threads, [](float *first, float *last) { std::fill(first, last, 1.f); });
  });
  std::printf("{\"isa\": \"%s\", \"peak_flops_one\": %.6g, \"peak_flops\": %.6g, ", best.name, one,
              std::max(one, peak(best, threads)));
  double read_one = read_rate(buffer, 1);
  std::printf("\"bandwidth_one\": %.6g, \"bandwidth\": %.6g, \"wake_seconds\": %.6g}\n", read_one,
              std::max(read_one, read_rate(buffer, threads)), wake());
}
