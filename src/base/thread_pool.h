#pragma once

#include <cstddef>
#include <memory>

#include "base/thread_count.h"

namespace mlx_entropy {

// Persistent worker threads, shared by the whole process.
//
// A region is split into tasks that the calling thread and the workers take
// from one counter. Workers spin for a moment after a region, since decoding
// issues hundreds of short ones in a row, then sleep. The caller never waits
// for a worker that has taken no task.
class ThreadPool {
 public:
  static ThreadPool& instance();

  // Threads that run a region, the calling one included, and who said so.
  ThreadCount count() const;
  size_t size() const { return count().count; }
  // 0 means default_thread_count(). Takes effect on the next region.
  void resize(size_t threads);

  // Calls body(task) once for each task in [0, tasks); returns when all are
  // done. Safe from several threads, and from inside a task: while one region
  // runs, others run their tasks inline on their own thread. If a task throws
  // (memory can run out in one), the first exception is rethrown here; tasks
  // that have not started by then do not run.
  template <class Body>
  void run(size_t tasks, const Body& body) {
    run_erased(
        tasks,
        [](const void* context, size_t task) {
          (*static_cast<const Body*>(context))(task);
        },
        &body);
  }

 private:
  using TaskFunction = void (*)(const void* context, size_t task);
  struct State;

  ThreadPool();
  ~ThreadPool() = delete;  // lives as long as the process
  void run_erased(size_t tasks, TaskFunction function, const void* context);

  std::unique_ptr<State> state_;
};

}  // namespace mlx_entropy
