// What products of integers leave out: outliers of x, and sums that are not
// finite. Plain loops, which cost nothing where there is neither.
#pragma once

#include "kernels/body/integer_product.h"

namespace mlx_entropy::body {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

// scale * code + bias, both steps rounded to float32 as mx.dequantize rounds
// them. The product is exact in double: a compiler that contracts the two would
// round once, which shows where an outlier meets a weight that is nearly zero.
inline float dequantized(float scale, uint8_t code, float bias) {
  const auto product = static_cast<float>(static_cast<double>(scale) * code);
  return static_cast<float>(static_cast<double>(product) + bias);
}

inline void add_scaled(const float* __restrict column, float value, size_t n,
                       float* __restrict y) {
  for (size_t r = 0; r < n; ++r) y[r] += value * column[r];
}

inline void add_outliers(const AffineBlock& block,
                         std::span<const Outlier> outliers, size_t y_stride,
                         Scratch& scratch) {
  float* const column = scratch.get<float>(Scratch::kFloats, block.rows);
  for (size_t i = 0; i < outliers.size();) {
    const size_t k = outliers[i].column;
    const size_t group = k / block.group_size;
    for (size_t r = 0; r < block.rows; ++r) {
      const size_t g = r * block.groups() + group;
      column[r] = dequantized(block.scales[g], block.codes[r * block.cols + k],
                              block.biases[g]);
    }
    for (; i < outliers.size() && outliers[i].column == k; ++i) {
      add_scaled(column, outliers[i].value, block.rows,
                 block.y + outliers[i].row * y_stride);
    }
  }
}

inline bool is_finite(float x) {
  return (std::bit_cast<uint32_t>(x) & 0x7f800000u) != 0x7f800000u;
}

// Where x, a scale or a bias is not finite, infinity and NaN have to be where
// floats have them: a sum of integers has lost which element was what.
inline void repair_row(const AffineBlock& block, const float* x, float* y) {
  for (size_t r = 0; r < block.rows; ++r) {
    if (is_finite(y[r])) continue;
    double sum = 0;
    for (size_t k = 0; k < block.cols; ++k) {
      const size_t g = r * block.groups() + k / block.group_size;
      sum += static_cast<double>(x[k]) *
             dequantized(block.scales[g], block.codes[r * block.cols + k],
                         block.biases[g]);
    }
    y[r] = static_cast<float>(sum);
  }
}

inline void finish_product(const AffineBlock& block, const Activations& x,
                           size_t y_stride, Scratch& scratch) {
  if (!x.outliers().empty()) {
    add_outliers(block, x.outliers(), y_stride, scratch);
  }
  for (size_t b = 0; b < x.batch(); ++b) {
    float* const y = block.y + b * y_stride;
    uint32_t wrong = 0;
    for (size_t r = 0; r < block.rows; ++r) wrong |= is_finite(y[r]) ? 0 : 1;
    if (wrong == 0) continue;
    float* const floats = scratch.get<float>(Scratch::kFloats, block.cols);
    // With NaN in x every sum is NaN already.
    if (x.floats(b, floats)) repair_row(block, floats, y);
  }
}

}  // namespace
}  // namespace mlx_entropy::body
