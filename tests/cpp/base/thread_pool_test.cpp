#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <mutex>
#include <new>
#include <set>
#include <thread>
#include <vector>

#include "support/sanitizers.h"

namespace mlx_entropy {
namespace {

ThreadPool& pool() { return ThreadPool::instance(); }

// Runs a region and returns whether each task ran exactly once.
bool each_task_once(size_t tasks) {
  std::vector<std::atomic<int>> runs(tasks);
  pool().run(tasks, [&](size_t task) { ++runs[task]; });
  for (const auto& count : runs) {
    if (count != 1) return false;
  }
  return true;
}

class ThreadPoolTest : public ::testing::Test {
 protected:
  void TearDown() override { pool().resize(0); }
};

TEST_F(ThreadPoolTest, DefaultSizeIsAtLeastOne) {
  pool().resize(0);
  EXPECT_GE(pool().size(), 1u);
}

TEST_F(ThreadPoolTest, EachTaskRunsOnce) {
  for (size_t threads : {1, 2, 3, 8, 0}) {
    pool().resize(threads);
    EXPECT_TRUE(threads == 0 || pool().size() == threads);
    for (size_t tasks : {0, 1, 2, 3, 7, 64, 1000}) {
      ASSERT_TRUE(each_task_once(tasks)) << threads << " " << tasks;
    }
  }
}

TEST_F(ThreadPoolTest, ManyShortRegions) {
  pool().resize(3);
  std::atomic<size_t> total{0};
  for (int region = 0; region < 2000; ++region) {
    pool().run(4, [&](size_t task) { total += task; });
  }
  EXPECT_EQ(total, 2000u * 6);
}

TEST_F(ThreadPoolTest, WorkersSleepAndWake) {
  pool().resize(3);
  for (int region = 0; region < 5; ++region) {
    ASSERT_TRUE(each_task_once(16));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// Seconds of CPU time of this process, all threads together.
double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * time.tv_usec;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST_F(ThreadPoolTest, AnIdleProcessUsesNoCpu) {
  pool().resize(4);
  ASSERT_TRUE(each_task_once(64));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(cpu_seconds() - before, 0.02);
}

// Workers that are late do not hold up a region that is done without them,
// and find nothing of it left when they come.
TEST_F(ThreadPoolTest, LateWorkersMissRegions) {
  pool().resize(16);
  for (int round = 0; round < 50; ++round) {
    for (int region = 0; region < 20; ++region) {
      ASSERT_TRUE(each_task_once(2 + static_cast<size_t>(region) % 3));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(150));
  }
}

TEST_F(ThreadPoolTest, SaysWhoSetItsSize) {
  pool().resize(0);
  EXPECT_STREQ(pool().count().source, default_thread_count().source);
  pool().resize(5);
  EXPECT_EQ(pool().count().count, 5u);
  EXPECT_STREQ(pool().count().source, "set_num_threads");
}

TEST_F(ThreadPoolTest, UsesSeveralThreads) {
  pool().resize(4);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  pool().run(64, [&](size_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  EXPECT_GE(threads.size(), 2u);
  EXPECT_LE(threads.size(), 4u);
}

// While one region runs, regions of other threads run inline.
TEST_F(ThreadPoolTest, ConcurrentRegions) {
  pool().resize(3);
  std::atomic<int> failures{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int region = 0; region < 200; ++region) {
        if (!each_task_once(17)) ++failures;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(failures, 0);
}

TEST_F(ThreadPoolTest, NestedRegions) {
  pool().resize(3);
  std::vector<std::atomic<int>> runs(8 * 16);
  pool().run(8, [&](size_t outer) {
    pool().run(16, [&](size_t inner) { ++runs[outer * 16 + inner]; });
  });
  for (const auto& count : runs) EXPECT_EQ(count, 1);
}

TEST_F(ThreadPoolTest, NestedRegionsOfConcurrentCallers) {
  pool().resize(2);
  std::atomic<int> runs{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int region = 0; region < 50; ++region) {
        pool().run(3, [&](size_t) { pool().run(4, [&](size_t) { ++runs; }); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(runs, 3 * 50 * 3 * 4);
}

// Memory can run out in a task, on any thread of the region.
TEST_F(ThreadPoolTest, ExceptionsReachTheCaller) {
  for (size_t threads : {1, 3}) {
    pool().resize(threads);
    for (size_t bad = 0; bad < 8; ++bad) {
      EXPECT_THROW(pool().run(8,
                              [&](size_t task) {
                                if (task == bad) throw std::bad_alloc();
                              }),
                   std::bad_alloc);
      EXPECT_TRUE(each_task_once(8));
    }
  }
}

TEST_F(ThreadPoolTest, ResizeWhileRegionsRun) {
  std::atomic<bool> stop{false};
  std::thread resizer([&] {
    for (size_t threads = 1; !stop; threads = threads % 5 + 1) {
      pool().resize(threads);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  for (int region = 0; region < 300; ++region) {
    EXPECT_TRUE(each_task_once(9));
  }
  stop = true;
  resizer.join();
}

TEST_F(ThreadPoolTest, WorksInAForkedChild) {
  if (testing::kThreadSanitizer) GTEST_SKIP() << "it does not follow forks";
  pool().resize(3);
  ASSERT_TRUE(each_task_once(16));
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(each_task_once(16) && pool().size() == 3 ? 0 : 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(each_task_once(16));
}

}  // namespace
}  // namespace mlx_entropy
