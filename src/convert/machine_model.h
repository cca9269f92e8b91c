// How fast this machine decodes and reads memory: what the choice of a codec
// rests on.
#pragma once

#include <cstddef>
#include <string>

namespace mlx_entropy {

// Times in nanoseconds a weight on one thread, bandwidth in bytes a
// nanosecond with all `threads`.
struct MachineModel {
  std::string target;
  size_t threads = 0;
  double rans = 0;
  double tree = 0;        // of a product with a tree, without its merges
  double tree_merge = 0;  // of each merge
  double bandwidth = 0;
  // The file it was read from or is kept in; empty if nowhere.
  std::string file;
};

// For the active target and number of threads. Measured on the first call ever,
// in a fraction of a second; remembered by the process, and by the user's cache
// folder for later ones.
MachineModel machine_model();

// Measures, whatever is remembered.
MachineModel measure_machine();

// So dear are merges that a tree is one leaf.
inline constexpr double kFlatPassCost = 1e6;

// Nanoseconds a weight of products with normally distributed codes in each
// form; `compact` is the smallest tree.
struct ProbeTimes {
  double rans = 0;
  double flat = 0;
  double compact = 0;
};

// The times of rANS and of the tree within what they can be, relative to plain
// bits, on any machine that runs the target: what lies beyond is noise.
ProbeTimes bounded(const std::string& target, ProbeTimes times);
MachineModel model_from(const ProbeTimes& times);

}  // namespace mlx_entropy
