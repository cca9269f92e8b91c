#include "base/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

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

}  // namespace

std::vector<double> read_bandwidth(size_t bytes, size_t passes) {
  const size_t tasks = std::max<size_t>(1, bytes / kTaskBytes);
  // Not zero: pages of zeros may all be the same memory.
  const std::vector<uint64_t> words(tasks * kTaskWords, 0x0123456789ABCDEF);
  // Somebody has to want the sum, or nothing is read.
  std::atomic<uint64_t> total{0};
  std::vector<double> rates;
  for (size_t pass = 0; pass < passes; ++pass) {
    const auto started = std::chrono::steady_clock::now();
    ThreadPool::instance().run(tasks, [&](size_t task) {
      total.fetch_add(read(words.data() + task * kTaskWords),
                      std::memory_order_relaxed);
    });
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - started;
    rates.push_back(static_cast<double>(tasks * kTaskBytes) / seconds.count());
  }
  return rates;
}

}  // namespace mlx_entropy
