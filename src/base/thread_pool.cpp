#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
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

// About 20 us at 3 GHz: longer than the gap between two layers of a decode
// step, short enough to cost nothing when the process goes idle.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

size_t available_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    return static_cast<size_t>(CPU_COUNT(&set));
  }
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : count;
}

}  // namespace

struct ThreadPool::State {
  // One region at a time; a second caller does not wait, it runs inline.
  std::mutex region;

  // Written before `gate` opens, read by the workers inside.
  TaskFunction function = nullptr;
  const void* context = nullptr;
  size_t tasks = 0;
  std::atomic<size_t> next{0};
  // Workers inside the region, and whether more may enter. The caller closes
  // it when no task is left, so that it never waits for a worker that still
  // sleeps or that the system runs somebody else on.
  static constexpr size_t kOpen = ~(~size_t{0} >> 1);
  std::atomic<size_t> gate{0};

  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
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

  void work() {
    uint64_t seen = 0;
    for (;;) {
      uint64_t now = generation.load(std::memory_order_acquire);
      for (int spin = 0; now == seen && spin < kSpins; ++spin) {
        pause();
        now = generation.load(std::memory_order_acquire);
      }
      if (now == seen) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return generation.load() != seen; });
        now = generation.load();
      }
      seen = now;
      if (stop.load()) return;
      if (enter()) {
        take_tasks();
        gate.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  bool enter() {
    size_t inside = gate.load(std::memory_order_relaxed);
    while ((inside & kOpen) != 0) {
      if (gate.compare_exchange_weak(inside, inside + 1,
                                     std::memory_order_acquire,
                                     std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  }

  void close() {
    gate.fetch_and(~kOpen, std::memory_order_relaxed);
    for (int spin = 0; gate.load(std::memory_order_acquire) != 0; ++spin) {
      // Workers may be waiting for this very CPU.
      spin < kSpins ? pause() : std::this_thread::yield();
    }
  }

  void publish() {
    {
      std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
  }

  void start_workers(size_t count) {
    if (started == count) return;
    started = count;
    stop = true;
    publish();
    for (std::thread& worker : workers) worker.join();
    workers.clear();
    stop = false;
    generation = 0;
    try {
      for (size_t i = 0; i < count; ++i) {
        workers.emplace_back([this] { work(); });
      }
    } catch (const std::system_error&) {
      // A limit on threads: go on with those there are.
    }
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

size_t ThreadPool::size() const {
  const size_t requested = state_->requested;
  return requested == 0 ? available_cpus() : requested;
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
  state.gate.store(State::kOpen, std::memory_order_release);
  state.publish();
  state.take_tasks();
  // Workers hold pointers to the caller's frame until they are out.
  state.close();
  in_region = false;
  if (state.failure) std::rethrow_exception(std::exchange(state.failure, {}));
}

}  // namespace mlx_entropy
