// Which codec a matrix should have in the memory of this machine.
//
// A product reads its matrix once, so a weight takes the longer of decoding it
// and fetching its bits:
//
//   time = max(decode time / threads, bits / 8 / bandwidth)
//
// Decode times are measured on this machine with small matrices, once for each
// target; those of a tree are linear in the merges that a value passes.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "convert/transcode.h"

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
};

// Measured on the first call for a target and a number of threads, in a
// fraction of a second; then remembered.
MachineModel machine_model();

// So dear are merges that a tree is one leaf.
inline constexpr double kFlatPassCost = 1e6;

struct CodecChoice {
  Codec codec = Codec::kRans;
  std::optional<double> pass_cost;  // of a tree
  double bits = 0;                  // a weight, estimated for trees
  double merges = 0;                // a weight
  double time = 0;                  // predicted nanoseconds a weight
};

// All that were considered, the best first. The matrix as it is stays unless
// another form is clearly faster; float matrices always stay.
std::vector<CodecChoice> rank_codecs(const Transcoder& matrix,
                                     const MachineModel& machine);

}  // namespace mlx_entropy
