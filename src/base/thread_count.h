// How many threads to use unless the program says otherwise.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace mlx_entropy {

struct ThreadCount {
  size_t count = 1;
  const char* source = "";  // who decided, as `mlx-entropy doctor` shows it
};

// MLX_ENTROPY_NUM_THREADS, else OMP_NUM_THREADS, else one for each CPU that
// this process may run on, or fewer where a container's quota pays for fewer:
// threads beyond it only make all of them wait for the next period. Looked up
// once, at the first call.
const ThreadCount& default_thread_count();

// The parts of it, which depend on their arguments alone.

// The first number of a list, as OpenMP writes them ("4" or "4,2"), if it is
// from 1 to 4096.
std::optional<size_t> parse_thread_count(std::string_view text);

// Null pointers are variables that are not set; what is invalid counts as
// that.
ThreadCount choose_thread_count(const char* own_variable,
                                const char* openmp_variable, size_t cpus,
                                std::optional<size_t> quota);

// The smallest CPU quota, in whole CPUs, of this process's control group and
// of those above it, version 2 and version 1. `root` stands before every path:
// "" for this machine.
std::optional<size_t> cgroup_cpu_limit(const std::string& root);

}  // namespace mlx_entropy
