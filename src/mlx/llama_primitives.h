#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "mlx/primitives.h"
#include "model/llama_decoder.h"

namespace mlx_entropy {

namespace mx = mlx::core;

// x [1, tokens, hidden] and none or, for each layer, keys and values
// [1, kv_heads, any capacity, head_dim] -> x after the last norm, and for each
// layer keys and values [1, kv_heads, capacity, head_dim].
class LlamaStep : public mx::Primitive {
 public:
  LlamaStep(mx::Stream stream, std::shared_ptr<const LlamaDecoder> decoder,
            int offset)
      : Primitive(stream), decoder_(std::move(decoder)), offset_(offset) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  DEFINE_NAME(LlamaStep)

 private:
  std::shared_ptr<const LlamaDecoder> decoder_;
  int offset_;
};

}  // namespace mlx_entropy
