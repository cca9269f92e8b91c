#include "base/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mlx_entropy {
namespace {

// Workers that wait for the next region spin this long before they sleep:
// longer than the gap between two layers of a decode step, since waking up
// takes as long as a small product; short enough to cost nothing when the
// process goes idle.
constexpr auto kSpinTime = std::chrono::microseconds(100);
constexpr int kPausesPerLook = 32;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins until `done` or for kSpinTime; true when done.
template <class Done>
bool spin_until(const Done& done) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (done()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return false;
}

// The gate of a region: its number, whether it is open, and how many workers
// are inside. One word, so that a worker enters only a region that is still
// open, and the caller waits only for those that did: one that sleeps, or that
// the operating system runs late, holds nobody up.
constexpr uint64_t kInside = (uint64_t{1} << 31) - 1;
constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kRegion = uint64_t{1} << 32;

uint64_t number_of(uint64_t gate) { return gate / kRegion; }

}  // namespace

struct ThreadPool::State {
  // One region at a time; a second caller does not wait, it runs inline.
  std::mutex region;

  // Written while nobody is inside and the gate is closed.
  TaskFunction function = nullptr;
  const void* context = nullptr;
  size_t tasks = 0;
  std::atomic<size_t> next{0};

  std::atomic<uint64_t> gate{0};
  std::atomic<bool> stop{false};
  std::atomic<size_t> sleeping{0};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
  size_t started = 0;  // workers asked for last
  std::atomic<size_t> requested{0};
  std::exception_ptr failure;  // guarded by `mutex`

  void take_tasks() {
    for (;;) {
      const size_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      try {
        function(context, task);
      } catch (...) {
        // Not swallowed: run_erased rethrows the first one.
        next.store(tasks, std::memory_order_relaxed);
        std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  }

  void work(uint64_t seen) {
    const auto changed = [&] { return number_of(gate.load()) != seen; };
    for (;;) {
      if (!spin_until(changed)) {
        std::unique_lock lock(mutex);
        // Before the gate is looked at again: announce() opens it first and
        // counts the sleepers then, so that one of the two sees the other.
        ++sleeping;
        wake.wait(lock, changed);
        --sleeping;
      }
      if (stop.load()) return;
      uint64_t now = gate.load(std::memory_order_acquire);
      while ((now & kOpen) != 0 && !gate.compare_exchange_weak(now, now + 1)) {
      }
      seen = number_of(now);
      if ((now & kOpen) == 0) continue;
      take_tasks();
      gate.fetch_sub(1, std::memory_order_release);
    }
  }

  // Moves the gate to the next region and wakes up to `wanted` sleepers.
  void announce(uint64_t open, size_t wanted) {
    // A plain store is enough: the gate is closed and nobody is inside, so
    // that no worker changes it.
    gate.store((number_of(gate.load()) + 1) * kRegion | open);
    size_t asleep = sleeping.load();
    if (asleep == 0) return;
    // A worker that has counted itself holds the mutex until it waits.
    { std::lock_guard lock(mutex); }
    if (asleep <= wanted) return wake.notify_all();
    for (; wanted > 0; --wanted) wake.notify_one();
  }

  void start_workers(size_t count) {
    if (started == count) return;
    started = count;
    stop = true;
    announce(0, workers.size());
    for (std::thread& worker : workers) worker.join();
    workers.clear();
    stop = false;
    const uint64_t seen = number_of(gate.load());
    try {
      for (size_t i = 0; i < count; ++i) {
        workers.emplace_back([this, seen] { work(seen); });
      }
    } catch (const std::system_error&) {
      // A limit on threads: go on with those there are.
    }
  }

  void close() {
    gate.fetch_and(~kOpen);
    // Workers hold pointers to the caller's frame until they are out.
    const auto empty = [&] {
      return (gate.load(std::memory_order_acquire) & kInside) == 0;
    };
    // Somebody else's work may keep them from running: make room for it.
    while (!spin_until(empty)) std::this_thread::yield();
  }
};

ThreadPool::ThreadPool() : state_(std::make_unique<State>()) {}

ThreadPool& ThreadPool::instance() {
  static ThreadPool* pool = [] {
    auto* created = new ThreadPool;
    // A forked child has no workers and may have inherited a held mutex:
    // it starts over with fresh state, and the old one is left alone.
    static ThreadPool* const forked = created;
    pthread_atfork(nullptr, nullptr, [] {
      const size_t requested = forked->state_->requested;
      forked->state_.release();
      forked->state_ = std::make_unique<State>();
      forked->state_->requested = requested;
    });
    return created;
  }();
  return *pool;
}

ThreadCount ThreadPool::count() const {
  const size_t requested = state_->requested;
  if (requested == 0) return default_thread_count();
  return {requested, "set_num_threads"};
}

void ThreadPool::resize(size_t threads) { state_->requested = threads; }

void ThreadPool::run_erased(size_t tasks, TaskFunction function,
                            const void* context) {
  State& state = *state_;
  thread_local bool in_region = false;
  std::unique_lock<std::mutex> region;
  const size_t threads = tasks > 1 && !in_region ? size() : 1;
  if (threads > 1) {
    region = std::unique_lock(state.region, std::try_to_lock);
  }
  if (!region.owns_lock()) {
    for (size_t task = 0; task < tasks; ++task) function(context, task);
    return;
  }
  in_region = true;
  state.start_workers(threads - 1);
  state.function = function;
  state.context = context;
  state.tasks = tasks;
  state.next.store(0, std::memory_order_relaxed);
  state.announce(kOpen, tasks - 1);
  state.take_tasks();
  state.close();
  in_region = false;
  if (state.failure) std::rethrow_exception(std::exchange(state.failure, {}));
}

}  // namespace mlx_entropy
