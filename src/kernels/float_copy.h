// Between float arrays of any type and float32.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/float_bits.h"
#include "kernels/float_array.h"

namespace mlx_entropy {

// Elements [first, first + n) of `from`.
inline void copy_to_float(ConstFloatArray from, size_t first, size_t n,
                          float* to) {
  const auto* halves = static_cast<const uint16_t*>(from.data) + first;
  switch (from.type) {
    case FloatType::kFloat16:
      for (size_t i = 0; i < n; ++i) to[i] = float16_to_float(halves[i]);
      break;
    case FloatType::kBfloat16:
      for (size_t i = 0; i < n; ++i) to[i] = bfloat16_to_float(halves[i]);
      break;
    default:
      std::copy_n(static_cast<const float*>(from.data) + first, n, to);
  }
}

// n values to elements [first, first + n) of `to`.
inline void copy_from_float(const float* from, size_t n, FloatArray to,
                            size_t first) {
  auto* halves = static_cast<uint16_t*>(to.data) + first;
  switch (to.type) {
    case FloatType::kFloat16:
      for (size_t i = 0; i < n; ++i) {
        halves[i] = static_cast<uint16_t>(float_to_float16(from[i]));
      }
      break;
    case FloatType::kBfloat16:
      for (size_t i = 0; i < n; ++i) {
        halves[i] = static_cast<uint16_t>(float_to_bfloat16(from[i]));
      }
      break;
    default:
      std::copy_n(from, n, static_cast<float*>(to.data) + first);
  }
}

}  // namespace mlx_entropy
