#include "base/bandwidth.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "base/thread_pool.h"

namespace mlx_entropy {
namespace {

constexpr size_t kTaskBytes = size_t{1} << 20;
constexpr size_t kTaskWords = kTaskBytes / sizeof(uint64_t);
// Independent sums, so that additions do not wait for each other.
constexpr size_t kSums = 16;

uint64_t read(const uint64_t* words) {
  uint64_t sums[kSums] = {};
  for (size_t i = 0; i < kTaskWords; i += kSums) {
    for (size_t k = 0; k < kSums; ++k) sums[k] += words[i + k];
  }
  uint64_t sum = 0;
  for (const uint64_t each : sums) sum += each;
  return sum;
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point started) {
  return std::chrono::duration<double>(Clock::now() - started).count();
}

// Megabytes that threads read as tasks.
class Memory {
 public:
  explicit Memory(size_t bytes)
      : tasks_(std::max<size_t>(1, bytes / kTaskBytes)),
        words_(
            std::make_unique_for_overwrite<uint64_t[]>(tasks_ * kTaskWords)) {
    // Written by all threads, so that it lies in the memory of every socket, as
    // a model that was coded in parallel does. Not zero: pages of zeros may all
    // be the same memory.
    ThreadPool::instance().run(tasks_, [&](size_t task) {
      std::fill_n(words_.get() + task * kTaskWords, kTaskWords,
                  0x0123456789ABCDEF);
    });
  }

  size_t tasks() const { return tasks_; }
  void read_task(size_t task) const {
    total_.fetch_add(read(words_.get() + task * kTaskWords),
                     std::memory_order_relaxed);
  }

 private:
  size_t tasks_;
  std::unique_ptr<uint64_t[]> words_;
  // Somebody has to want the sum, or nothing is read.
  mutable std::atomic<uint64_t> total_{0};
};

}  // namespace

std::vector<double> read_bandwidth(size_t bytes, size_t passes) {
  const Memory memory(bytes);
  std::vector<double> rates;
  for (size_t pass = 0; pass < passes; ++pass) {
    const auto started = Clock::now();
    ThreadPool::instance().run(memory.tasks(),
                               [&](size_t task) { memory.read_task(task); });
    rates.push_back(static_cast<double>(memory.tasks() * kTaskBytes) /
                    seconds_since(started));
  }
  return rates;
}

double burst_bandwidth(size_t bytes, size_t passes) {
  const Memory memory(bytes);
  std::vector<double> rates(memory.tasks() * passes);
  for (size_t pass = 0; pass < passes; ++pass) {
    ThreadPool::instance().run(memory.tasks(), [&](size_t task) {
      const auto started = Clock::now();
      memory.read_task(task);
      rates[pass * memory.tasks() + task] =
          static_cast<double>(kTaskBytes) / seconds_since(started);
    });
  }
  const auto median = rates.begin() + static_cast<long>(rates.size() / 2);
  std::nth_element(rates.begin(), median, rates.end());
  return *median * static_cast<double>(ThreadPool::instance().size());
}

size_t last_cache_bytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  for (const int name : {_SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
    const long bytes = sysconf(name);
    if (bytes > 0) return static_cast<size_t>(bytes);
  }
#endif
  return size_t{32} << 20;
}

}  // namespace mlx_entropy
