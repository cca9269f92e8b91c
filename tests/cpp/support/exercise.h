// Runs everything that can be run on bytes that anybody may have written, on
// every target, and compares the targets with each other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/float_bits.h"
#include "kernels/kernels.h"
#include "kernels/matrix_ops.h"
#include "kernels/prepared_matrix.h"
#include "support/bytes.h"

namespace mlx_entropy::testing {

using Matrix = std::shared_ptr<const PreparedMatrix>;

// The exact arrays of some rows, one after the other.
inline Bytes decode_rows(const PreparedMatrix& matrix, RowRange rows) {
  const MatrixHeader& header = matrix.header();
  const size_t n = rows.end - rows.begin;
  if (header.scheme != Scheme::kAffine) {
    Bytes out(n * header.cols * static_cast<size_t>(header.bits) / 8);
    decode_dense(matrix, rows, out.data());
    return out;
  }
  const size_t codes = n * header.cols * static_cast<size_t>(header.bits) / 8;
  const size_t groups = n * (header.cols / header.group_size) *
                        static_cast<size_t>(bit_width(header.float_type)) / 8;
  Bytes out(codes), scales(groups), biases(groups);
  decode_affine(matrix, rows, out.data(), scales.data(), biases.data());
  out.insert(out.end(), scales.begin(), scales.end());
  out.insert(out.end(), biases.begin(), biases.end());
  return out;
}

inline Bytes decode_all(const PreparedMatrix& matrix) {
  return decode_rows(matrix, {0, matrix.header().rows});
}

// Values of x that have an exact sum of any few of them.
inline std::vector<float> test_vector(size_t count) {
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) {
    x[i] = (static_cast<float>(i * 37 % 61) - 30.0f) / 16.0f;
  }
  return x;
}

inline std::vector<float> product(const PreparedMatrix& matrix,
                                  const std::vector<float>& x, size_t batch) {
  std::vector<float> y(batch * matrix.header().rows, -1.0f);
  multiply(matrix, {FloatType::kFloat32, x.data()}, batch,
           {FloatType::kFloat32, y.data()});
  return y;
}

inline std::vector<float> dequantized(const PreparedMatrix& matrix) {
  const MatrixHeader& header = matrix.header();
  std::vector<float> weights(size_t{header.rows} * header.cols);
  dequantize(matrix, {FloatType::kFloat32, weights.data()});
  return weights;
}

// The largest |scale * code| + |bias| of each row, or |weight|: what rounding
// errors of products are relative to. Large where that is not finite.
inline std::vector<double> row_sizes(const PreparedMatrix& matrix) {
  const MatrixHeader& header = matrix.header();
  const bool affine = header.scheme == Scheme::kAffine;
  const Bytes arrays = decode_all(matrix);
  const size_t width = static_cast<size_t>(bit_width(header.float_type)) / 8;
  const size_t per_row = header.cols / (affine ? header.group_size : 1);
  const size_t count = header.rows * per_row;
  const uint8_t* const end = arrays.data() + arrays.size();
  const auto value = [&](const uint8_t* array, size_t i) {
    uint32_t bits = 0;
    std::memcpy(&bits, array + i * width, width);
    return std::abs(static_cast<double>(to_float(header.float_type, bits)));
  };
  std::vector<double> sizes(header.rows, 0);
  for (size_t i = 0; i < count; ++i) {
    double size = value(end - count * width, i);
    if (affine) {
      size += value(end - 2 * count * width, i) * ((1 << header.bits) - 1);
    }
    double& row = sizes[i / per_row];
    row = size <= 1e30 ? std::fmax(row, size) : 1e300;
  }
  return sizes;
}

// Compares products with the dequantized weights. Mutated bytes can hold any
// weights: products with huge ones are made, but not compared.
class ProductCheck {
 public:
  explicit ProductCheck(const PreparedMatrix& matrix)
      : matrix_(matrix),
        cols_(matrix.header().cols),
        weights_(dequantized(matrix)),
        sizes_(row_sizes(matrix)) {}

  bool batch(size_t batch) const {
    const size_t rows = matrix_.header().rows;
    const std::vector<float> x = test_vector(batch * cols_);
    const std::vector<float> y = product(matrix_, x, batch);
    bool right = true;
    for (size_t i = 0; i < y.size(); ++i) {
      right = right && is_right(i % rows, &x[i / rows * cols_], y[i]);
    }
    return right;
  }

  // Each tile as a block if they are equal, else the whole matrix.
  bool blocks() const {
    const MatrixHeader& header = matrix_.header();
    const uint32_t rows = block_rows();
    const uint32_t last = header.rows / rows - 1;
    const uint32_t wanted[] = {last, 0, last, last / 2};
    const std::vector<float> x = test_vector(4 * cols_);
    std::vector<float> y(4 * size_t{rows}, -1.0f);
    multiply_blocks(matrix_, rows, wanted, {FloatType::kFloat32, x.data()},
                    {FloatType::kFloat32, y.data()});
    bool right = true;
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t row = wanted[i / rows] * size_t{rows} + i % rows;
      right = right && is_right(row, &x[i / rows * cols_], y[i]);
    }
    return right;
  }

  // The same blocks, transposed.
  bool transposed_blocks() const {
    const MatrixHeader& header = matrix_.header();
    const uint32_t rows = block_rows();
    const uint32_t last = header.rows / rows - 1;
    const uint32_t wanted[] = {last, 0, last, last / 2};
    const std::vector<float> g = test_vector(4 * size_t{rows});
    std::vector<float> y(4 * cols_, -1.0f);
    multiply_blocks_transposed(matrix_, rows, wanted,
                               {FloatType::kFloat32, g.data()},
                               {FloatType::kFloat32, y.data()});
    bool right = true;
    for (size_t i = 0; i < y.size(); ++i) {
      double sum = 0, size = 0;
      bool huge = false;
      for (size_t row = 0; row < rows; ++row) {
        const size_t at = wanted[i / cols_] * size_t{rows} + row;
        const auto factor = static_cast<double>(g[i / cols_ * rows + row]);
        sum += static_cast<double>(weights_[at * cols_ + i % cols_]) * factor;
        size += sizes_[at] * std::abs(factor);
        // Zero times what is not finite counts, too.
        huge = huge || sizes_[at] > 1e30;
      }
      // Sums of float32, one row after the other.
      const double allowed = 1e-7 * (10 + rows) * size + 1e-37;
      const double error = std::abs(static_cast<double>(y[i]) - sum);
      right = right && (huge || size > 1e30 || error <= allowed);
    }
    return right;
  }

 private:
  uint32_t block_rows() const {
    const MatrixHeader& header = matrix_.header();
    return rows_start_tiles(header, header.tile_rows) ? header.tile_rows
                                                      : header.rows;
  }

  bool is_right(size_t row, const float* x, float y) const {
    if (sizes_[row] > 1e30) return true;
    double sum = 0, size = 0, largest = 0;
    for (size_t k = 0; k < cols_; ++k) {
      const auto value = static_cast<double>(x[k]);
      sum += static_cast<double>(weights_[row * cols_ + k]) * value;
      size += sizes_[row] * std::abs(value);
      largest = std::fmax(largest, std::abs(value));
    }
    double allowed = 1e-6 * size + 1e-37;
    if (matrix_.header().scheme == Scheme::kAffine) {
      // Each x is rounded to an integer; see Activations.
      allowed += sizes_[row] * static_cast<double>(cols_) * largest / 65536;
    }
    return std::abs(static_cast<double>(y) - sum) <= allowed;
  }

  const PreparedMatrix& matrix_;
  size_t cols_;
  std::vector<float> weights_;
  std::vector<double> sizes_;
};

// Batches on both sides of where kernels change their way.
inline std::string check_products(const PreparedMatrix& matrix) {
  const ProductCheck check(matrix);
  for (size_t batch : {1, 2, 5, 17}) {
    if (!check.batch(batch)) {
      return "wrong product of batch " + std::to_string(batch);
    }
  }
  if (!check.blocks()) return "wrong product of blocks";
  return check.transposed_blocks() ? "" : "wrong transposed product";
}

// Validates on each target; what one says the others must say. Returns what
// went wrong, "" if nothing did, and sets `accepted`.
inline std::string exercise(const Bytes& bytes, bool* accepted) {
  // Matrices of no bits a weight can be huge; validating them is enough.
  constexpr uint64_t kMaxWeights = 1 << 16;
  std::string first_error;
  Bytes first_arrays;
  bool first = true;
  *accepted = false;
  for (const KernelTable* target : available_targets()) {
    const std::string name = target->name;
    if (!set_target(name).ok()) return "cannot set target " + name;
    const auto result = validate(bytes.data(), bytes.size());
    const std::string error = result.ok() ? "" : result.status().message();
    if (!first && error != first_error) {
      return name + " says \"" + error + "\", not \"" + first_error + "\"";
    }
    first_error = error;
    if (!result.ok()) {
      first = false;
      continue;
    }
    *accepted = true;
    const PreparedMatrix& matrix = *result.value();
    const MatrixHeader& header = matrix.header();
    if (uint64_t{header.rows} * header.cols > kMaxWeights) return "";
    const Bytes arrays = decode_all(matrix);
    if (!first && arrays != first_arrays) return name + " decodes differently";
    first_arrays = arrays;
    first = false;
    const uint32_t middle = header.rows / 2;
    decode_rows(matrix, {middle, header.rows});
    decode_rows(matrix, {0, middle});
    plane_entropies(matrix);
    if (header.scheme == Scheme::kSymbols) continue;
    const uint32_t wanted[] = {header.rows - 1, 0, kOutOfRange, middle, 0};
    std::vector<uint16_t> rows(5 * size_t{header.cols}, 1);
    gather_rows(matrix, wanted, {FloatType::kBfloat16, rows.data()});
    const auto missing = rows.begin() + 2 * static_cast<long>(header.cols);
    if (std::any_of(missing, missing + header.cols,
                    [](uint16_t bits) { return bits != 0; })) {
      return name + ": a row out of range is not zeros";
    }
    if (std::string what = check_products(matrix); !what.empty()) {
      return name + ": " + what;
    }
  }
  return "";
}

}  // namespace mlx_entropy::testing
