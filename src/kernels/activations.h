// Rows of x as integers, for products with codes in integer arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/bits.h"

namespace mlx_entropy {

struct KernelTable;

// Largest magnitude of an integer: 127 * 256 + 127, so that it splits into two
// signed bytes. With 2^31 > 128 * 255 * kActivationMax, sums over a group of
// 128 codes of 8 bits fit 32 bits.
inline constexpr int32_t kActivationMax = 32639;

// One row of x: in each quantization group x = scale * integer, where the
// scale makes the largest integer kActivationMax, so the error of an element
// is at most 2^-16 of the largest in its group. A group with an element that
// is not finite has NaN for a scale.
struct ActivationRow {
  // The integers, as the target wants them: 16-bit, or all high bytes and
  // after half_bytes(cols) all low bytes. Zero from `cols` on.
  const uint8_t* values;
  const float* scales;  // [groups]
  const float* sums;    // [groups], scale * sum of the integers
};

class Activations {
 public:
  // Bytes of one half of a row; whole vectors of 64.
  static size_t half_bytes(size_t cols) { return ceil_div(cols, 64) * 64; }

  // For products of the active target with matrices of this shape.
  Activations(size_t batch, size_t cols, size_t group_size);

  // Safe from several threads for different rows.
  void set_row(size_t b, const float* x);

  size_t batch() const { return batch_; }
  size_t cols() const { return cols_; }
  size_t group_size() const { return group_size_; }
  const KernelTable& target() const { return *target_; }
  ActivationRow row(size_t b) const {
    return {values_.get() + b * row_bytes(), scales_.get() + b * groups_,
            sums_.get() + b * groups_};
  }
  size_t row_bytes() const { return 2 * half_bytes(cols_); }

 private:
  const KernelTable* target_;
  size_t batch_;
  size_t cols_;
  size_t group_size_;
  size_t groups_;
  std::unique_ptr<uint8_t[]> values_;
  std::unique_ptr<float[]> scales_;
  std::unique_ptr<float[]> sums_;
};

}  // namespace mlx_entropy
