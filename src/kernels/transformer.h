// What a transformer does between its products: norms, rotary positions,
// attention, activations. All arithmetic is in float32.
#pragma once

#include <cstddef>

#include "base/float_bits.h"
#include "kernels/scratch.h"

namespace mlx_entropy {

// Keys and values of one layer, each [kv_heads, capacity, head_dim]. Several
// query heads may share a key head: head h reads key head h / (heads /
// kv_heads).
struct AttentionArgs {
  const float* queries = nullptr;  // [tokens, heads * head_dim]
  const void* keys = nullptr;
  const void* values = nullptr;
  FloatType type = FloatType::kFloat32;  // of keys and values
  size_t heads = 0;
  size_t kv_heads = 0;
  size_t head_dim = 0;
  size_t capacity = 0;
  // Positions before the first token: token t sees keys [0, offset + t].
  size_t offset = 0;
  float scale = 0.0f;
  float* out = nullptr;  // [tokens, out_stride], heads next to each other
  size_t out_stride = 0;
};

// Pairs of elements of one head that turn by an angle of the token's position.
struct Rotation {
  const float* cosines = nullptr;  // [pairs]
  const float* sines = nullptr;
  size_t pairs = 0;  // elements from 2 * pairs on stay as they are
  // Pairs are neighbours (2i, 2i + 1) instead of (i, i + pairs).
  bool traditional = false;
};

struct TransformerKernels {
  // out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
  void (*rms_norm)(const float* x, const float* weight, size_t n, float eps,
                   float* out);
  // to += x
  void (*add)(const float* x, size_t n, float* to);
  // out = gate / (1 + exp(-gate)) * up; out may be gate or up.
  void (*silu_multiply)(const float* gate, const float* up, size_t n,
                        float* out);
  // Turns `heads` heads of head_dim elements in place.
  void (*rotate)(const Rotation& rotation, size_t heads, size_t head_dim,
                 float* x);
  // Attention of query heads that share `kv_head`, for tokens [first,
  // first + count). Scratch grows with count.
  void (*attend)(const AttentionArgs& args, size_t kv_head, size_t first,
                 size_t count, Scratch& scratch);
  // Between float32 and an array of floats, n elements.
  void (*load_floats)(FloatType type, const void* from, size_t n, float* to);
  void (*store_floats)(FloatType type, const float* from, size_t n, void* to);
};

extern const TransformerKernels kScalarTransformer;
#if defined(__x86_64__)
extern const TransformerKernels kAvx2Transformer;
extern const TransformerKernels kAvx512Transformer;
#elif defined(__aarch64__)
extern const TransformerKernels kNeonTransformer;
#endif

}  // namespace mlx_entropy
