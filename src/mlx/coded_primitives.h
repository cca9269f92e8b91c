#pragma once

#include <utility>
#include <vector>

#include "mlx/primitives.h"

namespace mlx_entropy {

namespace mx = mlx::core;
using mx::array;  // MLX's macros below name it unqualified

// x [..., cols] and coded bytes -> [..., rows], in x's type.
class EntropyCodedMatmul : public mx::Primitive {
 public:
  EntropyCodedMatmul(mx::Stream stream, int output_dims)
      : Primitive(stream), output_dims_(output_dims) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  DEFINE_VMAP()
  DEFINE_GRADS()
  DEFINE_NAME(EntropyCodedMatmul)
  bool is_equivalent(const Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  int output_dims_;
};

// x [..., m, cols], coded bytes, int64 indices [...] -> [..., m, rows of a
// block], in x's type: each slice of x times the block that its index names.
// Transposed: x [..., m, rows of a block] -> [..., m, cols].
class EntropyCodedGatherMatmul : public mx::Primitive {
 public:
  EntropyCodedGatherMatmul(mx::Stream stream, int output_dims, bool transposed)
      : Primitive(stream), output_dims_(output_dims), transposed_(transposed) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  DEFINE_VMAP()
  DEFINE_GRADS()
  DEFINE_NAME(EntropyCodedGatherMatmul)
  bool is_equivalent(const Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  // This product or its transpose, of other arrays.
  mx::array product(const mx::array& x, const mx::array& coded,
                    const mx::array& indices, int output_dims, bool transposed);

  int output_dims_;
  bool transposed_;
};

// int64 indices [...] and coded bytes -> [..., dims].
class EntropyCodedEmbedding : public mx::Primitive {
 public:
  EntropyCodedEmbedding(mx::Stream stream, int dims, mx::Dtype dtype)
      : Primitive(stream), dims_(dims), dtype_(dtype) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  DEFINE_VMAP()
  DEFINE_NAME(EntropyCodedEmbedding)
  bool is_equivalent(const Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  int dims_;
  mx::Dtype dtype_;
};

// Coded bytes -> the whole matrix [rows, cols].
class EntropyDequantize : public mx::Primitive {
 public:
  EntropyDequantize(mx::Stream stream, int rows, int cols)
      : Primitive(stream), rows_(rows), cols_(cols) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  DEFINE_NAME(EntropyDequantize)
  bool is_equivalent(const Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  int rows_;
  int cols_;
};

}  // namespace mlx_entropy
