// Measures what this machine can do at best, and prints it as JSON on one line.
// usage: machine_probe THREADS
//
// Peak: independent fused multiply-adds on registers. 12 accumulators cover the latency of 4 cycles
// on two ports with room to spare. Bandwidth: summing a buffer several times the last cache.
// Wake: from notify to the first instruction of a thread that slept on a condition variable.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;
static double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

static const int ACCUMULATORS = 12;
static const long STEPS = 200000;

#define FMA_LOOP(NAME, LANES, ATTRIBUTE)                                              \
  typedef float NAME##_vector __attribute__((vector_size(4 * LANES)));                \
  ATTRIBUTE static double NAME(volatile float *sink) {                                \
    NAME##_vector sums[ACCUMULATORS], scale, shift;                                   \
    for (int lane = 0; lane < LANES; lane++) scale[lane] = 0.999f, shift[lane] = 1e-3f; \
    for (int i = 0; i < ACCUMULATORS; i++) sums[i] = shift * (float)i;                \
    for (long step = 0; step < STEPS; step++)                                         \
      _Pragma("GCC unroll 12") for (int i = 0; i < ACCUMULATORS; i++)                 \
          sums[i] = sums[i] * scale + shift;                                          \
    float total = 0;                                                                  \
    for (int i = 0; i < ACCUMULATORS; i++)                                            \
      for (int lane = 0; lane < LANES; lane++) total += sums[i][lane];                \
    *sink = total;                                                                    \
    return 2.0 * LANES * ACCUMULATORS * STEPS;                                        \
  }

typedef double (*Loop)(volatile float *);
FMA_LOOP(portable, 4, )
#if defined(__x86_64__)
FMA_LOOP(avx2, 8, __attribute__((target("avx2,fma"))))
FMA_LOOP(avx512, 16, __attribute__((target("avx512f"))))
#endif

struct Choice { Loop loop; const char *name; };

static std::vector<Choice> choices() {
  std::vector<Choice> found{{portable, "portable"}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({avx2, "avx2"});
  if (__builtin_cpu_supports("avx512f")) found.push_back({avx512, "avx512f"});
#endif
  return found;
}

// Runs `work` in that many threads for `rounds` rounds; the best units a second of any round.
template <class Work> static double best_rate(int threads, int rounds, Work work) {
  double best = 0;
  for (int round = 0; round < rounds; round++) {
    std::vector<double> units(threads);
    std::vector<std::thread> pool;
    auto start = Clock::now();
    for (int i = 1; i < threads; i++) pool.emplace_back([&, i] { units[i] = work(i); });
    units[0] = work(0);
    for (auto &thread : pool) thread.join();
    double seconds = since(start), total = 0;
    for (double unit : units) total += unit;
    best = std::max(best, total / seconds);
  }
  return best;
}

static double peak(Loop loop, int threads) {
  return best_rate(threads, 12, [=](int) {
    volatile float sink;
    double flops = 0;
    for (int i = 0; i < 8; i++) flops += loop(&sink);
    return flops;
  });
}

static double bandwidth(const std::vector<float> &data, int threads) {
  size_t share = data.size() / threads;
  return best_rate(threads, 5, [&](int index) {
    const float *from = data.data() + index * share;
    float sums[64] = {};
    for (size_t i = 0; i + 64 <= share; i += 64)
      for (int lane = 0; lane < 64; lane++) sums[lane] += from[i + lane];
    volatile float sink = 0;
    for (float sum : sums) sink = sink + sum;
    return (double)share * sizeof(float);
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
  for (int i = 0; i < 101; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::lock_guard<std::mutex> lock(mutex);
    rung = Clock::now();
    ringing = true;
    bell.notify_one();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  { std::lock_guard<std::mutex> lock(mutex); over = true; }
  bell.notify_one();
  sleeper.join();
  std::sort(waits.begin(), waits.end());
  return waits.empty() ? 0 : waits[waits.size() / 2];
}

int main(int count, char **words) {
  int threads = count > 1 ? std::max(1, std::atoi(words[1])) : 1;
  Choice best{portable, "portable"};
  double one = 0;
  for (Choice choice : choices()) {  // a wider vector is not always the faster one
    double rate = peak(choice.loop, 1);
    if (rate > one) one = rate, best = choice;
  }
  std::vector<float> data((size_t)256 << 18, 1.0f);  // 256 MiB
  std::printf("{\"isa\": \"%s\", \"peak_flops_one\": %.6g, \"peak_flops\": %.6g, ", best.name, one,
              std::max(one, peak(best.loop, threads)));
  std::printf("\"bandwidth_one\": %.6g, \"bandwidth\": %.6g, \"wake_seconds\": %.6g}\n",
              bandwidth(data, 1), bandwidth(data, threads), wake());
}
