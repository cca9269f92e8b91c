#include "kernels/matrix_ops.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <mutex>
#include <numeric>
#include <unordered_map>

#include "base/bits.h"
#include "base/thread_pool.h"
#include "kernels/decoded_tile.h"
#include "kernels/float_copy.h"
#include "kernels/kernels.h"
#include "kernels/runs.h"
#include "quant/affine.h"

namespace mlx_entropy {
namespace {

// Puts the low bits of 32-bit patterns where the array's type wants them.
void put_bits(FloatType type, uint32_t bits, void* array, size_t index) {
  if (type == FloatType::kFloat32) {
    static_cast<uint32_t*>(array)[index] = bits;
  } else {
    static_cast<uint16_t*>(array)[index] = static_cast<uint16_t>(bits);
  }
}

// A decoded tile as what its integers stand for.
class TileWeights {
 public:
  TileWeights(const PreparedMatrix& matrix, uint32_t index, uint32_t rows)
      : matrix_(matrix), tile_(matrix, index, rows) {}

  const uint8_t* codes(uint32_t row) const {
    return tile_.codes.data() + size_t{row} * matrix_.header().cols;
  }
  uint32_t value_bits(size_t i) const {
    return sign_to_high_bit(tile_.words[i], matrix_.header().bits);
  }
  uint32_t scale_bits(size_t group) const {
    return sign_to_high_bit(tile_.side[0][group], width());
  }
  uint32_t bias_bits(size_t group) const {
    if (matrix_.weights_plane() == 2) {
      return sign_to_high_bit(tile_.side[1][group], width());
    }
    const auto offset =
        static_cast<int32_t>(tile_.side[1][group] - kOffsetBias);
    const uint32_t predicted =
        predicted_bias(matrix_.header().float_type, scale_bits(group), offset);
    const uint32_t ordered =
        static_cast<uint32_t>(ordered_from_bits(predicted, width())) +
        (tile_.side[2][group] - kCorrectionBias);
    return bits_from_ordered(static_cast<int32_t>(ordered), width());
  }

  // One row of weights in float32. `like_mlx` rounds to the scales' type
  // after the product and after the sum.
  void dequantize(uint32_t row, bool like_mlx, float* out) const {
    const MatrixHeader& header = matrix_.header();
    const FloatType type = header.float_type;
    if (header.scheme == Scheme::kFloat) {
      for (size_t k = 0; k < header.cols; ++k) {
        out[k] = to_float(type, value_bits(size_t{row} * header.cols + k));
      }
      return;
    }
    const uint8_t* const code = codes(row);
    const size_t groups = header.cols / header.group_size;
    for (size_t g = 0; g < groups; ++g) {
      const float scale = to_float(type, scale_bits(row * groups + g));
      const float bias = to_float(type, bias_bits(row * groups + g));
      for (size_t k = g * header.group_size; k < (g + 1) * header.group_size;
           ++k) {
        float value = scale * static_cast<float>(code[k]);
        if (like_mlx) value = to_float(type, from_float(type, value));
        value += bias;
        if (like_mlx) value = to_float(type, from_float(type, value));
        out[k] = value;
      }
    }
  }

 private:
  int width() const { return bit_width(matrix_.header().float_type); }

  const PreparedMatrix& matrix_;
  DecodedTile tile_;
};

// Calls visit(tile, row in the tile, row in the matrix) for a range of rows.
template <class Visit>
void for_each_row(const PreparedMatrix& matrix, RowRange rows,
                  const Visit& visit) {
  if (rows.begin >= rows.end) return;
  const uint32_t tile_rows = matrix.header().tile_rows;
  const uint32_t first = rows.begin / tile_rows;
  const uint32_t last = (rows.end - 1) / tile_rows;
  ThreadPool::instance().run(last - first + 1, [&](size_t task) {
    const uint32_t index = first + static_cast<uint32_t>(task);
    const uint32_t start = index * tile_rows;
    const uint32_t stop =
        std::min(rows.end - start, matrix.header().rows_in_tile(index));
    const TileWeights tile(matrix, index, stop);
    const uint32_t begin = rows.begin > start ? rows.begin - start : 0;
    for (uint32_t row = begin; row < stop; ++row) {
      visit(tile, row, start + row);
    }
  });
}

}  // namespace

Result<std::shared_ptr<const PreparedMatrix>> validate(const uint8_t* data,
                                                       size_t size) {
  auto matrix = PreparedMatrix::make(data, size);
  if (!matrix.ok()) return matrix;
  const PreparedMatrix& prepared = *matrix.value();
  if (Status status = prepared.container().check_hash(); !status.ok()) {
    return status;
  }
  std::atomic<uint32_t> bad{prepared.header().tiles};
  ThreadPool::instance().run(prepared.header().tiles, [&](size_t tile) {
    if (!active_target().check_tile(prepared, static_cast<uint32_t>(tile),
                                    Scratch::local())) {
      bad = static_cast<uint32_t>(tile);
    }
  });
  if (bad != prepared.header().tiles) {
    return Status::error("invalid coded matrix: tile " +
                         std::to_string(bad.load()) +
                         ": stream does not decode");
  }
  return matrix;
}

void gather_rows(const PreparedMatrix& matrix,
                 std::span<const uint32_t> indices, FloatArray out) {
  const MatrixHeader& header = matrix.header();
  // Each tile is decoded once, up to the last row that is wanted of it.
  std::vector<size_t> order(indices.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return indices[a] < indices[b]; });
  const auto end_of_rows =
      std::find_if(order.begin(), order.end(),
                   [&](size_t i) { return indices[i] >= header.rows; });
  if (end_of_rows != order.end()) {
    const std::vector<float> zeros(header.cols);
    for (auto it = end_of_rows; it != order.end(); ++it) {
      copy_from_float(zeros.data(), zeros.size(), out, *it * header.cols);
    }
    order.erase(end_of_rows, order.end());
  }
  const std::vector<size_t> starts = run_starts(order.size(), [&](size_t i) {
    return indices[order[i]] / header.tile_rows;
  });
  const bool like_mlx = out.type == header.float_type;
  ThreadPool::instance().run(starts.size() - 1, [&](size_t task) {
    const size_t begin = starts[task], end = starts[task + 1];
    const uint32_t index = indices[order[begin]] / header.tile_rows;
    const uint32_t start = index * header.tile_rows;
    const TileWeights tile(matrix, index, indices[order[end - 1]] - start + 1);
    std::vector<float> row(header.cols);
    for (size_t i = begin; i < end; ++i) {
      tile.dequantize(indices[order[i]] - start, like_mlx, row.data());
      copy_from_float(row.data(), row.size(), out, order[i] * header.cols);
    }
  });
}

void multiply_blocks_transposed(const PreparedMatrix& matrix,
                                uint32_t block_rows,
                                std::span<const uint32_t> blocks,
                                ConstFloatArray g, FloatArray y) {
  const MatrixHeader& header = matrix.header();
  const size_t cols = header.cols;
  std::vector<size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return blocks[a] < blocks[b]; });
  const std::vector<size_t> starts =
      run_starts(order.size(), [&](size_t i) { return blocks[order[i]]; });
  // A block is decoded once for all of its rows of g, a tile at a time.
  ThreadPool::instance().run(starts.size() - 1, [&](size_t task) {
    const size_t begin = starts[task], batch = starts[task + 1] - begin;
    std::vector<float> factors(batch * block_rows), sums(batch * cols);
    for (size_t b = 0; b < batch; ++b) {
      copy_to_float(g, order[begin + b] * block_rows, block_rows,
                    &factors[b * block_rows]);
    }
    std::vector<float> weights(cols);
    const uint32_t first = blocks[order[begin]] * block_rows;
    for (uint32_t row = 0; row < block_rows;) {
      const uint32_t index = (first + row) / header.tile_rows;
      const uint32_t rows = header.rows_in_tile(index);
      const TileWeights tile(matrix, index, rows);
      for (uint32_t r = 0; r < rows; ++r, ++row) {
        tile.dequantize(r, false, weights.data());
        for (size_t b = 0; b < batch; ++b) {
          const float factor = factors[b * block_rows + row];
          float* const sum = &sums[b * cols];
          for (size_t k = 0; k < cols; ++k) sum[k] += factor * weights[k];
        }
      }
    }
    for (size_t b = 0; b < batch; ++b) {
      copy_from_float(&sums[b * cols], cols, y, order[begin + b] * cols);
    }
  });
}

void dequantize(const PreparedMatrix& matrix, FloatArray out) {
  const MatrixHeader& header = matrix.header();
  const bool like_mlx = out.type == header.float_type;
  for_each_row(matrix, {0, header.rows},
               [&](const TileWeights& tile, uint32_t row, uint32_t to) {
                 std::vector<float> values(header.cols);
                 tile.dequantize(row, like_mlx, values.data());
                 copy_from_float(values.data(), values.size(), out,
                                 size_t{to} * header.cols);
               });
}

void decode_affine(const PreparedMatrix& matrix, RowRange rows, uint8_t* codes,
                   void* scales, void* biases) {
  const MatrixHeader& header = matrix.header();
  const size_t row_bytes = size_t{header.cols} * header.bits / 8;
  const size_t groups = header.cols / header.group_size;
  for_each_row(matrix, rows,
               [&](const TileWeights& tile, uint32_t row, uint32_t matrix_row) {
                 const size_t to = matrix_row - rows.begin;
                 pack_codes(tile.codes(row), header.bits, header.cols,
                            codes + to * row_bytes);
                 for (size_t g = 0; g < groups; ++g) {
                   const size_t from = row * groups + g;
                   put_bits(header.float_type, tile.scale_bits(from), scales,
                            to * groups + g);
                   put_bits(header.float_type, tile.bias_bits(from), biases,
                            to * groups + g);
                 }
               });
}

void decode_dense(const PreparedMatrix& matrix, RowRange rows, void* out) {
  const MatrixHeader& header = matrix.header();
  const size_t cols = header.cols;
  for_each_row(matrix, rows,
               [&](const TileWeights& tile, uint32_t row, uint32_t matrix_row) {
                 const size_t to = (matrix_row - rows.begin) * cols;
                 if (header.scheme == Scheme::kSymbols) {
                   std::copy_n(tile.codes(row), cols,
                               static_cast<uint8_t*>(out) + to);
                   return;
                 }
                 for (size_t k = 0; k < cols; ++k) {
                   put_bits(header.float_type, tile.value_bits(row * cols + k),
                            out, to + k);
                 }
               });
}

std::vector<double> plane_entropies(const PreparedMatrix& matrix) {
  const MatrixHeader& header = matrix.header();
  std::vector<std::unordered_map<uint32_t, uint64_t>> counts(
      header.planes.size());
  std::mutex mutex;
  ThreadPool::instance().run(header.tiles, [&](size_t index) {
    const auto tile_index = static_cast<uint32_t>(index);
    const Tile tile = matrix.container().tile(tile_index);
    for (size_t p = 0; p < header.planes.size(); ++p) {
      const bool is_weights = p == matrix.weights_plane();
      std::vector<uint32_t> values(tile.planes[p].steps() * kLanes);
      TileValues out;
      if (is_weights) {
        out.rows = tile.rows;
        out.words = values.data();
      } else {
        out.side[p] = values.data();
      }
      active_target().decode_tile(matrix, tile_index, out, Scratch::local());
      values.resize(tile.planes[p].values);
      std::sort(values.begin(), values.end());
      std::lock_guard lock(mutex);
      for (size_t i = 0, j = 0; i < values.size(); i = j) {
        while (j < values.size() && values[j] == values[i]) ++j;
        counts[p][values[i]] += j - i;
      }
    }
  });
  std::vector<double> entropies;
  for (size_t p = 0; p < counts.size(); ++p) {
    const auto total =
        static_cast<double>(header.values(header.planes[p], header.rows));
    double bits = 0;
    for (const auto& [value, count] : counts[p]) {
      const auto n = static_cast<double>(count);
      bits -= n / total * std::log2(n / total);
    }
    entropies.push_back(bits);
  }
  return entropies;
}

}  // namespace mlx_entropy
