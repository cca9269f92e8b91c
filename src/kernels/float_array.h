#pragma once

#include "base/float_bits.h"

namespace mlx_entropy {

// A dense row-major array of floats of some type.
struct FloatArray {
  FloatType type;
  void* data;
};
struct ConstFloatArray {
  FloatType type;
  const void* data;
};

}  // namespace mlx_entropy
