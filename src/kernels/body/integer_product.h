// Products of codes with quantized activations, in integer arithmetic.
//
// y = sum over groups of scale_w * scale_x * (codes . integers)
//                      + bias_w * scale_x * sum of the integers
//
// `Target` adds to its float operations:
//   kSplitActivations     rows of x are two planes of bytes, not 16-bit words
//   Int                   kWidth 32-bit lanes
//   int_zero(), to_float(Int)
//   dot_row<kGroup>(codes, x, groups, scales)
//                         sum over groups of scales[g] * (codes . integers);
//                         may read 64 codes beyond the row, and scales[groups]
//   pack(codes, stride, cols, panel)
//                         16 rows of codes to panel[k / kDepth][16][kDepth]
//   kDepth                elements of k in a lane of a panel: 4 bytes or 2
//                         words
//   load_panel(p)         kWidth rows of one k / kDepth
//   dot(acc, panel, x)    adds kDepth products in each lane; x points at
//                         kDepth integers (of one half)
//   shift_high(acc)       acc * 256, between the halves
//   load_first(p, n)      the first n floats, zero beyond
#pragma once

#include "kernels/activations.h"

namespace mlx_entropy::body {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

// Rows of a panel; two are multiplied at a time where the rows suffice.
inline constexpr size_t kPanelRows = 16;

// Plain loops on integers, which compilers vectorize. Rounding is done by
// adding 1.5 * 2^23, which leaves the integer in the mantissa.
template <class Target>
void quantize_group(const float* x, size_t n, float to_integer, uint8_t* values,
                    size_t half, int32_t* sum) {
  int32_t total = 0;
  for (size_t i = 0; i < n; ++i) {
    const float shifted = x[i] * to_integer + 12582912.0f;
    const int32_t q = std::bit_cast<int32_t>(shifted) - 0x4b400000;
    total += q;
    if constexpr (Target::kSplitActivations) {
      const int32_t high = (q + 128) >> 8;
      values[i] = static_cast<uint8_t>(high);
      values[half + i] = static_cast<uint8_t>(q - (high << 8));
    } else {
      const auto word = static_cast<int16_t>(q);
      __builtin_memcpy(values + 2 * i, &word, sizeof word);
    }
  }
  *sum = total;
}

// More than half of a group's elements that are not zero are smaller than
// `largest` by more than kOutlierBits, so that their median is.
inline bool has_outliers(const float* group, size_t n, uint32_t largest) {
  constexpr uint32_t kFactor = kOutlierBits << 23;
  const uint32_t limit = largest < kFactor ? 0 : largest - kFactor;
  int32_t small = 0, zeros = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(group[i]) & 0x7fffffffu;
    small += magnitude < limit ? 1 : 0;
    zeros += magnitude == 0 ? 1 : 0;
  }
  return 2 * (small - zeros) > static_cast<int32_t>(n) - zeros;
}

// Magnitudes compare as integers, NaN being the largest.
inline uint32_t largest_magnitude(const float* x, size_t n) {
  uint32_t largest = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    largest = largest < magnitude ? magnitude : largest;
  }
  return largest;
}

// Takes the outliers out of a group that has some; returns the largest
// magnitude of the others, which go to `rest` with zeros for outliers.
inline uint32_t take_outliers(const float* group, size_t n, size_t first_column,
                              uint32_t largest, float* rest,
                              Outliers& outliers) {
  std::copy_n(group, n, rest);
  while (has_outliers(rest, n, largest)) {
    for (size_t i = 0; i < n; ++i) {
      if ((std::bit_cast<uint32_t>(rest[i]) & 0x7fffffffu) == largest) {
        outliers.add(first_column + i, rest[i]);
        rest[i] = 0.0f;
      }
    }
    largest = largest_magnitude(rest, n);
  }
  return largest;
}

template <class Target>
float quantize_row(const float* x, size_t cols, size_t group_size,
                   uint8_t* values, float* scales, float* sums,
                   Outliers& outliers) {
  const size_t half = Activations::half_bytes(cols);
  constexpr size_t kElement = Target::kSplitActivations ? 1 : 2;
  uint32_t row_largest = 0;
  for (size_t g = 0; g < cols / group_size; ++g) {
    const float* group = x + g * group_size;
    float rest[kMaxGroup];
    uint32_t largest = largest_magnitude(group, group_size);
    const bool finite = largest < 0x7f800000u;
    if (finite && has_outliers(group, group_size, largest)) {
      largest = take_outliers(group, group_size, g * group_size, largest, rest,
                              outliers);
      group = rest;
    }
    row_largest = row_largest < largest ? largest : row_largest;
    const float max = std::bit_cast<float>(largest);
    // Below this the quotient would overflow; such a group rounds to zero.
    const bool tiny = largest < 0x0a000000u;
    constexpr auto kMax = static_cast<float>(kActivationMax);
    const float to_integer = tiny || !finite ? 0.0f : kMax / max;
    int32_t sum = 0;
    if (finite) {
      quantize_group<Target>(group, group_size, to_integer,
                             values + g * group_size * kElement, half, &sum);
    } else {
      for (size_t i = 0; i < group_size; ++i) {
        if constexpr (Target::kSplitActivations) {
          values[g * group_size + i] = 0;
          values[half + g * group_size + i] = 0;
        } else {
          values[2 * (g * group_size + i)] = 0;
          values[2 * (g * group_size + i) + 1] = 0;
        }
      }
    }
    scales[g] = finite ? (tiny ? 0.0f : max / kMax)
                       : std::bit_cast<float>(uint32_t{0x7fc00000});
    sums[g] = scales[g] * static_cast<float>(sum);
  }
  if constexpr (Target::kSplitActivations) {
    for (size_t i = cols; i < half; ++i) values[i] = values[half + i] = 0;
  } else {
    for (size_t i = 2 * cols; i < 2 * half; ++i) values[i] = 0;
  }
  return std::bit_cast<float>(std::min(row_largest, 0x7f800000u));
}

// `rows` rows of codes and their groups.
struct AffineBlock {
  const uint8_t* codes;  // [rows, cols], 64 readable bytes beyond
  const float* scales;   // [rows, groups], kPanelRows^2 readable beyond
  const float* biases;   // as scales
  size_t rows;
  size_t cols;
  size_t group_size;
  float* y;  // [batch, y_stride], the block's first row

  size_t groups() const { return cols / group_size; }
};

// One row of x.
template <class Target>
void integer_rows(const AffineBlock& block, const ActivationRow& x,
                  Scratch& scratch) {
  constexpr size_t kWidth = Target::kWidth;
  const size_t groups = block.groups();
  float* const products =
      scratch.get<float>(Scratch::kProducts, groups + kWidth + 1);
  const auto dot = block.group_size == 32   ? Target::template dot_row<32>
                   : block.group_size == 64 ? Target::template dot_row<64>
                                            : Target::template dot_row<128>;
  for (size_t r = 0; r < block.rows; ++r) {
    const float* const scales = block.scales + r * groups;
    const float* const biases = block.biases + r * groups;
    auto offset = Target::zero();
    size_t g = 0;
    for (; g + kWidth <= groups; g += kWidth) {
      Target::store(products + g, Target::mul(Target::load(scales + g),
                                              Target::load(x.scales + g)));
      offset = Target::fma(Target::load(biases + g), Target::load(x.sums + g),
                           offset);
    }
    if (g < groups) {
      const size_t n = groups - g;
      Target::store(products + g,
                    Target::mul(Target::load_first(scales + g, n),
                                Target::load_first(x.scales + g, n)));
      offset = Target::fma(Target::load_first(biases + g, n),
                           Target::load_first(x.sums + g, n), offset);
    }
    products[groups] = 0.0f;
    block.y[r] = dot(block.codes + r * block.cols, x.values, groups, products) +
                 Target::sum(offset);
  }
}

// kPanels panels of 16 rows, with scales and biases as [groups][16].
struct Panels {
  const uint8_t* codes;
  const float* scales;
  const float* biases;
  size_t codes_stride;  // bytes from panel to panel
  size_t group_stride;  // floats from panel to panel
};

template <class Target, size_t kPanels, size_t kCols>
void panel_dots(const Panels& panels, const AffineBlock& block,
                const ActivationRow* x, float* y, size_t y_stride) {
  using Float = typename Target::Float;
  using Int = typename Target::Int;
  constexpr size_t kVectors = kPanelRows / Target::kWidth;
  constexpr size_t kRows = kPanels * kVectors;
  constexpr size_t kDepth = Target::kDepth;
  constexpr size_t kStep = kPanelRows * 4;  // bytes of kDepth columns
  constexpr size_t kVectorBytes = kStep / kVectors;
  constexpr int kHalves = Target::kSplitActivations ? 2 : 1;
  constexpr size_t kElement = Target::kSplitActivations ? 1 : 2;
  const size_t half = Activations::half_bytes(block.cols);
  Float sums[kCols][kRows];
  for (size_t c = 0; c < kCols; ++c) {
    for (size_t v = 0; v < kRows; ++v) sums[c][v] = Target::zero();
  }
  for (size_t g = 0; g < block.groups(); ++g) {
    Int dots[kCols][kRows];
    for (size_t c = 0; c < kCols; ++c) {
      for (size_t v = 0; v < kRows; ++v) dots[c][v] = Target::int_zero();
    }
    for (int h = 0; h < kHalves; ++h) {
      if (h > 0) {
        for (size_t c = 0; c < kCols; ++c) {
          for (size_t v = 0; v < kRows; ++v) {
            dots[c][v] = Target::shift_high(dots[c][v]);
          }
        }
      }
      const size_t first = g * block.group_size;
      const size_t at = static_cast<size_t>(h) * half;
      for (size_t k = first; k < first + block.group_size; k += kDepth) {
        Int w[kRows];
#pragma GCC unroll 16
        for (size_t v = 0; v < kRows; ++v) {
          w[v] = Target::load_panel(
              panels.codes + v / kVectors * panels.codes_stride +
              k / kDepth * kStep + v % kVectors * kVectorBytes);
        }
#pragma GCC unroll 16
        for (size_t c = 0; c < kCols; ++c) {
          const Int broadcast =
              Target::broadcast(x[c].values + at + k * kElement);
#pragma GCC unroll 16
          for (size_t v = 0; v < kRows; ++v) {
            dots[c][v] = Target::dot(dots[c][v], w[v], broadcast);
          }
        }
      }
    }
    for (size_t v = 0; v < kRows; ++v) {
      const size_t group = v / kVectors * panels.group_stride + g * kPanelRows +
                           v % kVectors * Target::kWidth;
      const Float scale = Target::load(panels.scales + group);
      const Float bias = Target::load(panels.biases + group);
#pragma GCC unroll 16
      for (size_t c = 0; c < kCols; ++c) {
        const Float dot = Target::mul(Target::to_float(dots[c][v]),
                                      Target::set(x[c].scales[g]));
        sums[c][v] = Target::fma(dot, scale, sums[c][v]);
        sums[c][v] = Target::fma(Target::set(x[c].sums[g]), bias, sums[c][v]);
      }
    }
  }
  for (size_t c = 0; c < kCols; ++c) {
    for (size_t v = 0; v < kRows; ++v) {
      Target::store(y + c * y_stride + v * Target::kWidth, sums[c][v]);
    }
  }
}

// All rows of x from `b` on, kCols at a time, then the rest with fewer.
template <class Target, size_t kPanels, size_t kCols>
void panel_columns(const Panels& panels, const AffineBlock& block, size_t rows,
                   const Activations& x, float* y, size_t y_stride,
                   size_t b = 0) {
  for (; b + kCols <= x.batch(); b += kCols) {
    ActivationRow columns[kCols];
    for (size_t c = 0; c < kCols; ++c) columns[c] = x.row(b + c);
    if (rows == kPanels * kPanelRows) {
      panel_dots<Target, kPanels, kCols>(panels, block, columns,
                                         y + b * y_stride, y_stride);
      continue;
    }
    float part[kCols * kPanels * kPanelRows];
    panel_dots<Target, kPanels, kCols>(panels, block, columns, part,
                                       kPanels * kPanelRows);
    for (size_t c = 0; c < kCols; ++c) {
      for (size_t r = 0; r < rows; ++r) {
        y[(b + c) * y_stride + r] = part[c * kPanels * kPanelRows + r];
      }
    }
  }
  if constexpr (kCols > 1) {
    if (b < x.batch()) {
      panel_columns<Target, kPanels, kCols - 1>(panels, block, rows, x, y,
                                                y_stride, b);
    }
  }
}

// Several rows of x: codes are packed once, then multiplied with all of them.
template <class Target>
void integer_panels(const AffineBlock& block, const Activations& x,
                    size_t y_stride, Scratch& scratch) {
  const size_t groups = block.groups();
  const size_t panel_count = (block.rows + kPanelRows - 1) / kPanelRows;
  const size_t padded_cols = (block.cols + 63) / 64 * 64;
  const size_t padded_groups =
      (groups + kPanelRows - 1) / kPanelRows * kPanelRows;
  Panels panels;
  panels.codes_stride = kPanelRows * padded_cols * (4 / Target::kDepth);
  panels.group_stride = kPanelRows * padded_groups;
  uint8_t* const codes =
      scratch.get<uint8_t>(Scratch::kPanel, panel_count * panels.codes_stride);
  float* const floats =
      scratch.get<float>(Scratch::kTall, 2 * panel_count * panels.group_stride);
  float* const scales = floats;
  float* const biases = floats + panel_count * panels.group_stride;
  for (size_t p = 0; p < panel_count; ++p) {
    const size_t row = p * kPanelRows;
    // Rows beyond the block are whatever follows it; their results are dropped.
    Target::pack(block.codes + row * block.cols, block.cols,
                 codes + p * panels.codes_stride);
    for (size_t g = 0; g < groups; g += kPanelRows) {
      const size_t to = p * panels.group_stride + g * kPanelRows;
      Target::transpose(block.scales + row * groups + g, groups, scales + to);
      Target::transpose(block.biases + row * groups + g, groups, biases + to);
    }
  }
  for (size_t p = 0; p < panel_count;) {
    const size_t row = p * kPanelRows;
    const size_t left = block.rows - row;
    panels.codes = codes + p * panels.codes_stride;
    panels.scales = scales + p * panels.group_stride;
    panels.biases = biases + p * panels.group_stride;
    if (Target::kPairColumns > 0 && left > kPanelRows) {
      const size_t rows = left < 2 * kPanelRows ? left : 2 * kPanelRows;
      panel_columns<Target, 2, Target::kPairColumns>(panels, block, rows, x,
                                                     block.y + row, y_stride);
      p += 2;
    } else {
      const size_t rows = left < kPanelRows ? left : kPanelRows;
      panel_columns<Target, 1, Target::kSingleColumns>(panels, block, rows, x,
                                                       block.y + row, y_stride);
      p += 1;
    }
  }
}

template <class Target>
void integer_product(const AffineBlock& block, const Activations& x,
                     size_t y_stride, Scratch& scratch) {
  if (x.batch() == 1) {
    integer_rows<Target>(block, x.row(0), scratch);
  } else {
    integer_panels<Target>(block, x, y_stride, scratch);
  }
}

}  // namespace
}  // namespace mlx_entropy::body
