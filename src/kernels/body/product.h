// The fused product: decode a block of rows, dequantize, multiply, next.
//
// A block is small enough for its codes (batch 1) or its dequantized rows
// (larger batches) to stay in the first- or second-level cache, so weights
// are never written to memory.
#pragma once

#include "kernels/body/exact_product.h"
#include "kernels/body/integer_product.h"
#include "kernels/body/tile_reader.h"

namespace mlx_entropy::body {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

// Symbols of a block for one row of x: with eight tiles in flight the blocks
// and x share the first-level cache. For more rows, blocks of dequantized
// floats in the second-level cache, tall enough for micro_product.
inline constexpr size_t kBlockSymbols = 4096;
inline constexpr size_t kBatchBlockSymbols = 16384;

// From this batch on, blocks have 16 rows, which are multiplied transposed.
inline constexpr size_t kTallBatch = 16;
inline constexpr size_t kTallRows = 16;

// Tiles in flight for a few and for many rows of x.
inline constexpr uint32_t kBatchStreams = 4;
inline constexpr uint32_t kTallStreams = 2;

inline size_t block_rows(const ProductArgs& args) {
  const MatrixHeader& header = args.matrix->header();
  const size_t cols = header.cols;
  size_t unit = header.coder == Coder::kTree ? tree_block_rows(header.cols)
                                             : row_unit(header.cols);
  size_t symbols = kBlockSymbols;
  if (args.batch > 1 && header.scheme == Scheme::kAffine) {
    // Whole pairs of panels; fewer rows where decoding is most of the work,
    // because then more tiles are in flight.
    const size_t panels = args.batch < kTallBatch ? 1 : 2;
    unit = std::lcm(unit, panels * kPanelRows);
    symbols = kBatchBlockSymbols;
  } else if (args.batch > 1) {
    symbols = kBatchBlockSymbols;
    if (args.batch >= kTallBatch) unit = std::lcm(unit, kTallRows);
  }
  return unit * std::max<size_t>(1, symbols / (unit * cols));
}

// Float values of group scales or stored biases from their plane.
inline void floats_from_words(FloatType type, const uint32_t* words, size_t n,
                              float* out) {
  switch (type) {
    case FloatType::kFloat16:
      for (size_t i = 0; i < n; ++i) {
        out[i] = float16_to_float(sign_to_high_bit(words[i], 16));
      }
      break;
    case FloatType::kBfloat16:
      for (size_t i = 0; i < n; ++i) {
        out[i] = bfloat16_to_float(sign_to_high_bit(words[i], 16));
      }
      break;
    default:
      for (size_t i = 0; i < n; ++i) {
        out[i] = std::bit_cast<float>(sign_to_high_bit(words[i], 32));
      }
  }
}

template <FloatType kType>
void predicted_biases(const float* scales, const uint32_t* offsets,
                      const uint32_t* corrections, size_t n, float* out) {
  constexpr int kWidth = bit_width(kType);
  for (size_t i = 0; i < n; ++i) {
    const auto offset = static_cast<int32_t>(offsets[i] - kOffsetBias);
    const uint32_t product =
        from_float(kType, scales[i] * static_cast<float>(offset));
    const uint32_t predicted = offset == 0 ? 0 : product;
    const uint32_t ordered =
        static_cast<uint32_t>(ordered_from_bits(predicted, kWidth)) +
        (corrections[i] - kCorrectionBias);
    out[i] = to_float(kType,
                      bits_from_ordered(static_cast<int32_t>(ordered), kWidth));
  }
}

inline void biases_from_planes(FloatType type, const float* scales,
                               const uint32_t* offsets,
                               const uint32_t* corrections, size_t n,
                               float* out) {
  switch (type) {
    case FloatType::kFloat16:
      return predicted_biases<FloatType::kFloat16>(scales, offsets, corrections,
                                                   n, out);
    case FloatType::kBfloat16:
      return predicted_biases<FloatType::kBfloat16>(scales, offsets,
                                                    corrections, n, out);
    default:
      return predicted_biases<FloatType::kFloat32>(scales, offsets, corrections,
                                                   n, out);
  }
}

// A Target with a member kConvertsHalves has its own versions for 16-bit types,
// which may read and write whole vectors:
//   half_floats(type, words, n, out)          as floats_from_words
//   half_groups(type, scale words, offset words, correction words, n, scales,
//               biases)                       both, with predicted biases
template <class Target>
void words_to_floats(FloatType type, const uint32_t* words, size_t n,
                     float* out) {
  if constexpr (requires { Target::kConvertsHalves; }) {
    if (type != FloatType::kFloat32) {
      return Target::half_floats(type, words, n, out);
    }
  }
  floats_from_words(type, words, n, out);
}

// Scales and biases of all groups of V tiles, [V][groups of a tile].
template <class Target, int V>
void read_groups(const PreparedMatrix& matrix, TileReader<Target, V>* reader,
                 size_t groups, float* scales, float* biases,
                 Scratch& scratch) {
  const MatrixHeader& header = matrix.header();
  const size_t n_side = header.planes.size() - 1;
  const size_t steps = (groups + kLanes - 1) / kLanes;
  const size_t padded = steps * kLanes;
  uint8_t* const classes = scratch.get<uint8_t>(Scratch::kClasses, V * padded);
  uint32_t* const words =
      scratch.get<uint32_t>(Scratch::kSide, V * n_side * padded);
  uint8_t* out[V];
  for (int v = 0; v < V; ++v)
    out[v] = classes + static_cast<size_t>(v) * padded;
  for (size_t p = 0; p < n_side; ++p) {
    reader->read_classes(p, steps, out);
    for (int v = 0; v < V; ++v) {
      uint32_t next_exception = 0;
      assemble<Target>(header.planes[p], matrix.tables(p),
                       reader->tile(v).planes[p], 0, steps, out[v],
                       words + (static_cast<size_t>(v) * n_side + p) * padded,
                       &next_exception);
    }
  }
  for (int v = 0; v < V; ++v) {
    const uint32_t* const w = words + static_cast<size_t>(v) * n_side * padded;
    float* const s = scales + static_cast<size_t>(v) * groups;
    float* const b = biases + static_cast<size_t>(v) * groups;
    if constexpr (requires { Target::kConvertsHalves; }) {
      if (n_side == 3 && header.float_type != FloatType::kFloat32) {
        Target::half_groups(header.float_type, w, w + padded, w + 2 * padded,
                            groups, s, b);
        continue;
      }
    }
    words_to_floats<Target>(header.float_type, w, groups, s);
    if (n_side == 3) {
      biases_from_planes(header.float_type, s, w + padded, w + 2 * padded,
                         groups, b);
    } else {
      words_to_floats<Target>(header.float_type, w + padded, groups, b);
    }
  }
}

// kRows rows of a panel times kCols rows of x.
template <class Target, size_t kRows, size_t kCols>
void micro_product(const float* panel, size_t stride, const float* x,
                   size_t x_stride, float* y, size_t y_stride) {
  using F = typename Target::Float;
  F sums[kRows][kCols];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kCols; ++c) sums[r][c] = Target::zero();
  }
  for (size_t k = 0; k < stride; k += Target::kWidth) {
    F w[kRows];
    for (size_t r = 0; r < kRows; ++r) {
      w[r] = Target::load(panel + r * stride + k);
    }
    for (size_t c = 0; c < kCols; ++c) {
      const F value = Target::load(x + c * x_stride + k);
      for (size_t r = 0; r < kRows; ++r) {
        sums[r][c] = Target::fma(w[r], value, sums[r][c]);
      }
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kCols; ++c) {
      y[c * y_stride + r] = Target::sum(sums[r][c]);
    }
  }
}

// All rows of x from `b` on, kCols at a time, then the rest with fewer.
template <class Target, size_t kRows, size_t kCols = Target::kPanelCols>
void panel_rows(const float* panel, size_t stride, const ProductArgs& args,
                float* y, size_t b = 0) {
  const size_t y_stride = args.y_stride;
  for (; b + kCols <= args.batch; b += kCols) {
    micro_product<Target, kRows, kCols>(
        panel, stride, args.x + b * args.x_stride, args.x_stride,
        y + b * y_stride, y_stride);
  }
  if constexpr (kCols > 1) {
    panel_rows<Target, kRows, kCols - 1>(panel, stride, args, y, b);
  }
}

// 16 rows of a panel with the rows next to each other, [k][16], times kCols
// rows of x: no sums across a register, and one load of weights for each k.
template <class Target, size_t kCols>
void tall_product(const float* tall, size_t depth, const float* x,
                  size_t x_stride, float* y, size_t y_stride) {
  using F = typename Target::Float;
  constexpr size_t kVectors = kTallRows / Target::kWidth;
  F sums[kCols][kVectors];
  for (size_t c = 0; c < kCols; ++c) {
    for (size_t v = 0; v < kVectors; ++v) sums[c][v] = Target::zero();
  }
  for (size_t k = 0; k < depth; ++k) {
    F w[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      w[v] = Target::load(tall + k * kTallRows + v * Target::kWidth);
    }
#pragma GCC unroll 16
    for (size_t c = 0; c < kCols; ++c) {
      const F value = Target::set(x[c * x_stride + k]);
      for (size_t v = 0; v < kVectors; ++v) {
        sums[c][v] = Target::fma(w[v], value, sums[c][v]);
      }
    }
  }
  for (size_t c = 0; c < kCols; ++c) {
    for (size_t v = 0; v < kVectors; ++v) {
      Target::store(y + c * y_stride + v * Target::kWidth, sums[c][v]);
    }
  }
}

// 16 rows of a panel times all rows of x, for batches that are worth the
// transposition.
template <class Target>
void tall_rows(const float* panel, size_t stride, const ProductArgs& args,
               float* y, Scratch& scratch) {
  constexpr size_t kCols = Target::kTallCols;
  float* const tall = scratch.get<float>(Scratch::kTall, kTallRows * stride);
  for (size_t k = 0; k < stride; k += kTallRows) {
    Target::transpose(panel + k, stride, tall + k * kTallRows);
  }
  const size_t y_stride = args.y_stride;
  const auto x = [&](size_t b) { return args.x + b * args.x_stride; };
  size_t b = 0;
  for (; b + kCols <= args.batch; b += kCols) {
    tall_product<Target, kCols>(tall, stride, x(b), args.x_stride,
                                y + b * y_stride, y_stride);
  }
  for (; b + 4 <= args.batch; b += 4) {
    tall_product<Target, 4>(tall, stride, x(b), args.x_stride, y + b * y_stride,
                            y_stride);
  }
  for (; b < args.batch; ++b) {
    tall_product<Target, 1>(tall, stride, x(b), args.x_stride, y + b * y_stride,
                            y_stride);
  }
}

// `rows` dequantized rows times all rows of x; y points at the first row.
template <class Target>
void panel_product(const float* panel, size_t rows, size_t stride,
                   const ProductArgs& args, float* y, Scratch& scratch) {
  size_t r = 0;
  if (args.batch >= kTallBatch) {
    for (; r + kTallRows <= rows; r += kTallRows) {
      tall_rows<Target>(panel + r * stride, stride, args, y + r, scratch);
    }
  }
  for (; r + 4 <= rows; r += 4) {
    panel_rows<Target, 4>(panel + r * stride, stride, args, y + r);
  }
  for (; r < rows; ++r) {
    panel_rows<Target, 1>(panel + r * stride, stride, args, y + r);
  }
}

template <class Target, int V>
void affine_product(const ProductArgs& args, uint32_t first_tile,
                    Scratch& scratch) {
  const PreparedMatrix& matrix = *args.matrix;
  const MatrixHeader& header = matrix.header();
  const size_t rows = header.rows_in_tile(first_tile);
  const size_t cols = header.cols;
  const size_t row_groups = cols / header.group_size;
  const size_t groups = rows * row_groups;
  const size_t plane = matrix.weights_plane();
  TileReader<Target, V> reader(matrix, first_tile, scratch);
  // Panels read whole rows of 16 groups beyond the last.
  constexpr size_t kBeyond = kPanelRows * kPanelRows;
  const size_t beyond = kPanelRows * row_groups + kBeyond;
  float* const scales =
      scratch.get<float>(Scratch::kScales, V * groups + beyond);
  float* const biases =
      scratch.get<float>(Scratch::kBiases, V * groups + beyond);
  read_groups<Target, V>(matrix, &reader, groups, scales, biases, scratch);

  const size_t step_rows = block_rows(args);
  const size_t room = (step_rows * cols + kLanes - 1) / kLanes * kLanes;
  uint8_t* const codes = scratch.get<uint8_t>(
      Scratch::kClasses, V * room + kPanelRows * cols + kLanes);
  uint8_t* out[V];
  for (int v = 0; v < V; ++v) out[v] = codes + static_cast<size_t>(v) * room;
  uint32_t next_exception[V] = {};
  for (size_t row = 0; row < rows; row += step_rows) {
    const size_t n = rows - row < step_rows ? rows - row : step_rows;
    const size_t first = row * cols / kLanes;
    const size_t steps = (n * cols + kLanes - 1) / kLanes;
    reader.read_classes(plane, steps, out);
    for (int v = 0; v < V; ++v) {
      assemble<Target>(header.planes[plane], matrix.tables(plane),
                       reader.tile(v).planes[plane], first, steps, out[v],
                       out[v], &next_exception[v]);
      const size_t group = static_cast<size_t>(v) * groups + row * row_groups;
      const size_t y_row =
          (size_t{first_tile} + static_cast<size_t>(v)) * header.tile_rows -
          args.first_row + row;
      const AffineBlock block{out[v], scales + group,    biases + group, n,
                              cols,   header.group_size, args.y + y_row};
      integer_product<Target>(block, *args.activations, args.y_stride, scratch);
      finish_product(block, *args.activations, args.y_stride, scratch);
    }
  }
}

template <class Target, int V>
void float_product(const ProductArgs& args, uint32_t first_tile,
                   Scratch& scratch) {
  const PreparedMatrix& matrix = *args.matrix;
  const MatrixHeader& header = matrix.header();
  const size_t rows = header.rows_in_tile(first_tile);
  const size_t cols = header.cols;
  const size_t stride = args.x_stride;
  TileReader<Target, V> reader(matrix, first_tile, scratch);
  const size_t step_rows = block_rows(args);
  const size_t room = (step_rows * cols + kLanes - 1) / kLanes * kLanes;
  uint8_t* const classes =
      scratch.get<uint8_t>(Scratch::kClasses, V * room + kLanes);
  uint32_t* const words = scratch.get<uint32_t>(Scratch::kWords, room + kLanes);
  float* const panel = scratch.get<float>(Scratch::kPanel, step_rows * stride);
  uint8_t* out[V];
  for (int v = 0; v < V; ++v) out[v] = classes + static_cast<size_t>(v) * room;
  uint32_t next_exception[V] = {};
  for (size_t row = 0; row < rows; row += step_rows) {
    const size_t n = rows - row < step_rows ? rows - row : step_rows;
    const size_t steps = (n * cols + kLanes - 1) / kLanes;
    reader.read_classes(0, steps, out);
    for (int v = 0; v < V; ++v) {
      assemble<Target>(header.planes[0], matrix.tables(0),
                       reader.tile(v).planes[0], row * cols / kLanes, steps,
                       out[v], words, &next_exception[v]);
      for (size_t r = 0; r < n; ++r) {
        float* const to = panel + r * stride;
        words_to_floats<Target>(header.float_type, words + r * cols, cols, to);
        for (size_t k = cols; k < stride; ++k) to[k] = 0.0f;
      }
      const size_t y_row =
          (size_t{first_tile} + static_cast<size_t>(v)) * header.tile_rows -
          args.first_row + row;
      panel_product<Target>(panel, n, stride, args, args.y + y_row, scratch);
    }
  }
}

// Runs with exactly `count` streams, a number known to the compiler.
template <class Target, int V = Target::kMaxStreams>
void product_streams(const ProductArgs& args, uint32_t first, uint32_t count,
                     Scratch& scratch) {
  if constexpr (V > 1) {
    if (count < V) {
      return product_streams<Target, V - 1>(args, first, count, scratch);
    }
  }
  if (args.matrix->header().scheme == Scheme::kAffine) {
    affine_product<Target, V>(args, first, scratch);
  } else {
    float_product<Target, V>(args, first, scratch);
  }
}

template <class Target>
void product(const ProductArgs& args, uint32_t first, uint32_t count,
             Scratch& scratch) {
  const MatrixHeader& header = args.matrix->header();
  // Lockstep needs equal tiles: a shorter last one goes alone.
  const uint32_t last = first + count - 1;
  if (count > 1 && header.rows_in_tile(last) != header.tile_rows) {
    product_streams<Target>(args, last, 1, scratch);
    --count;
  }
  // The blocks of all tiles in flight should stay in the second-level cache.
  // Blocks of a tree need no company.
  const uint32_t most = header.coder == Coder::kTree ? 1
                        : args.batch == 1            ? count
                        : args.batch < kTallBatch    ? kBatchStreams
                                                     : kTallStreams;
  for (uint32_t done = 0; done < count;) {
    const uint32_t n = std::min(most, count - done);
    product_streams<Target>(args, first + done, n, scratch);
    done += n;
  }
}

}  // namespace
}  // namespace mlx_entropy::body
