// Which codec a matrix should have in the memory of this machine.
//
// A product reads its matrix once, so a weight takes the longer of decoding it
// and fetching its bits:
//
//   time = max(decode time / threads, bits / 8 / bandwidth)
//
// Decode times of a tree are linear in the merges that a value passes.
#pragma once

#include <optional>
#include <vector>

#include "convert/machine_model.h"
#include "convert/transcode.h"

namespace mlx_entropy {

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
