// Rows of x as integers, for products with codes in integer arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/bits.h"
#include "kernels/float_array.h"

namespace mlx_entropy {

struct KernelTable;

// Largest magnitude of an integer: 127 * 256 + 127, so that it splits into two
// signed bytes. With 2^31 > 128 * 255 * kActivationMax, sums over a group of
// 128 codes of 8 bits fit 32 bits.
inline constexpr int32_t kActivationMax = 32639;

// An element of x that is more than 2^kOutlierBits times the median of its
// group (zeros not counted) is an outlier: with it for a scale, the others
// be off by more than 2^kOutlierBits / 2^16 of their median.
inline constexpr uint32_t kOutlierBits = 6;
// The largest group.
inline constexpr size_t kMaxGroup = 128;

// One row of x without its outliers: in each quantization group
// x = scale * integer, where the scale makes the largest integer
// kActivationMax, so the error of an element is at most 2^-16 of the largest in
// its group. A group with an element that is not finite has NaN for a scale.
struct ActivationRow {
  // The integers, as the target wants them: 16-bit, or all high bytes and
  // after half_bytes(cols) all low bytes. Zero from `cols` on.
  const uint8_t* values;
  const float* scales;  // [groups]
  const float* sums;    // [groups], scale * sum of the integers
};

// Kernels add value * column of W, in floats.
struct Outlier {
  uint32_t column;
  uint32_t row;
  float value;
};

// What quantize_row takes out of a row.
class Outliers {
 public:
  Outliers(size_t row, std::vector<Outlier>* found)
      : row_(static_cast<uint32_t>(row)), found_(found) {}

  void add(size_t column, float value) {
    found_->push_back({static_cast<uint32_t>(column), row_, value});
  }

 private:
  uint32_t row_;
  std::vector<Outlier>* found_;
};

class Activations {
 public:
  // Bytes of one half of a row; whole vectors of 64.
  static size_t half_bytes(size_t cols) { return ceil_div(cols, 64) * 64; }

  // For products of the active target with matrices of this shape.
  Activations(size_t batch, size_t cols, size_t group_size);

  // Row b is `cols` elements of x from `first` on, which must stay there:
  // kernels come back to them. Safe from several threads for different rows.
  void set_row(size_t b, ConstFloatArray x, size_t first);
  // Between the last set_row and the first product.
  void seal();

  size_t batch() const { return batch_; }
  size_t cols() const { return cols_; }
  size_t group_size() const { return group_size_; }
  const KernelTable& target() const { return *target_; }
  ActivationRow row(size_t b) const {
    return {values_.get() + b * row_bytes(), scales_.get() + b * groups_,
            sums_.get() + b * groups_};
  }
  size_t row_bytes() const { return 2 * half_bytes(cols_); }
  // Of all rows, by columns.
  std::span<const Outlier> outliers() const { return outliers_; }
  // Row b as it was given; false if there is NaN in it.
  bool floats(size_t b, float* out) const;

 private:
  // Where a row came from.
  struct Source {
    ConstFloatArray x;
    size_t first;
  };

  const KernelTable* target_;
  size_t batch_;
  size_t cols_;
  size_t group_size_;
  size_t groups_;
  std::unique_ptr<uint8_t[]> values_;
  std::unique_ptr<float[]> scales_;
  std::unique_ptr<float[]> sums_;
  std::unique_ptr<Source[]> sources_;
  std::mutex mutex_;
  std::vector<Outlier> outliers_;
};

}  // namespace mlx_entropy
