// A llama-family transformer from the first layer's input to the last norm,
// as one call: the decoder layers of a model whose linear layers are coded.
//
// The residual stream and everything computed from it are float32; input,
// output and caches may be of any float type.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "base/float_bits.h"
#include "base/status.h"
#include "kernels/matrix_ops.h"
#include "kernels/prepared_matrix.h"

namespace mlx_entropy {

// y = x W^T + bias; no bias when empty.
struct Projection {
  std::shared_ptr<const PreparedMatrix> matrix;
  std::vector<float> bias;
};

struct LlamaLayer {
  std::vector<float> attention_norm;  // [hidden]
  Projection q, k, v, o;
  std::vector<float> mlp_norm;  // [hidden]
  Projection gate, up, down;
};

struct LlamaModel {
  std::vector<LlamaLayer> layers;
  std::vector<float> norm;  // [hidden]
  size_t heads = 0;
  size_t kv_heads = 0;
  size_t head_dim = 0;
  float eps = 0.0f;
  float attention_scale = 0.0f;
  // Pair i of each head turns by position * rope_scale * inverse_frequency[i];
  // elements of a head beyond the pairs stay as they are.
  std::vector<float> inverse_frequencies;
  float rope_scale = 1.0f;
  bool rope_traditional = false;
};

// Keys and values of one layer, each [kv_heads, capacity, head_dim].
struct LayerCache {
  FloatArray keys;
  FloatArray values;
  size_t capacity;
};

class LlamaDecoder {
 public:
  // Checks that all shapes fit together.
  static Result<std::shared_ptr<const LlamaDecoder>> make(LlamaModel model);

  size_t layers() const { return model_.layers.size(); }
  size_t hidden() const { return model_.norm.size(); }
  size_t kv_heads() const { return model_.kv_heads; }
  size_t head_dim() const { return model_.head_dim; }

  // x and out [tokens, hidden]. `caches` hold the keys and values of positions
  // [0, offset) and have room for those of the tokens, which are added.
  void run(ConstFloatArray x, size_t tokens, size_t offset,
           std::span<const LayerCache> caches, FloatArray out) const;

 private:
  explicit LlamaDecoder(LlamaModel model) : model_(std::move(model)) {}

  struct Buffers;
  void run_chunk(Buffers& buffers, size_t tokens, size_t offset,
                 std::span<const LayerCache> caches) const;
  void attend(Buffers& buffers, const LlamaLayer& layer, size_t tokens,
              size_t offset, const LayerCache& cache) const;
  void feed_forward(Buffers& buffers, const LlamaLayer& layer,
                    size_t tokens) const;

  LlamaModel model_;
};

}  // namespace mlx_entropy
