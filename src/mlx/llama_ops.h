// The decoder layers of a llama-family model as one operation.
#pragma once

#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "model/llama_decoder.h"

namespace mlx_entropy {

namespace mx = mlx::core;

struct LlamaShape {
  int heads;
  int kv_heads;
  int head_dim;
  float eps;
  float attention_scale;
  float rope_scale;
  bool rope_traditional;
};

// Keys or values of all layers.
using Caches = std::vector<mx::array>;

// Weights that have been checked, ready to run.
class FusedLlama {
 public:
  // `coded` and `biases`: q, k, v, o, gate, up and down of each layer;
  // `norms`: two of each layer, then the last. Evaluates them.
  FusedLlama(const std::vector<mx::array>& coded,
             const std::vector<std::optional<mx::array>>& biases,
             const std::vector<mx::array>& norms,
             const mx::array& inverse_frequencies, const LlamaShape& shape);

  // x [1, tokens, hidden] -> the same shape after the last norm, and the
  // caches [1, kv_heads, capacity, head_dim] with the tokens at positions
  // [offset, offset + tokens). Without caches, offset is 0 and they start.
  std::tuple<mx::array, Caches, Caches> step(const mx::array& x,
                                             const Caches& keys,
                                             const Caches& values, int offset,
                                             int capacity,
                                             mx::StreamOrDevice s) const;

 private:
  // Owns the coded arrays as well, whose memory it reads.
  std::shared_ptr<const LlamaDecoder> decoder_;
};

}  // namespace mlx_entropy
