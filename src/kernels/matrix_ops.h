// Whole-matrix operations, on the active target and all threads of the pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "kernels/float_array.h"
#include "kernels/prepared_matrix.h"

namespace mlx_entropy {

// Every check that makes the other functions safe: structure, checksum, and
// one decoding of each stream. The bytes must outlive the result.
Result<std::shared_ptr<const PreparedMatrix>> validate(const uint8_t* data,
                                                       size_t size);

// An index that no matrix has: rows are counted in 32 bits.
inline constexpr uint32_t kOutOfRange = UINT32_MAX;

// y = x W^T: x [batch, cols], y [batch, rows]. Sums are in float32.
void multiply(const PreparedMatrix& matrix, ConstFloatArray x, size_t batch,
              FloatArray y);

// Products of several matrices of the same cols with the same x, in one
// parallel region. x [batch, x_stride] in float32, zero beyond cols, x_stride a
// multiple of 16; y[i] [batch, rows of matrix i].
void multiply_shared(std::span<const PreparedMatrix* const> matrices,
                     const float* x, size_t batch, size_t x_stride,
                     std::span<float* const> y);

// Products with blocks of rows of W, as a mixture of experts takes them: W is
// header().rows / block_rows matrices on top of each other, which start on
// tiles (rows_start_tiles), and row i of x is multiplied with matrix blocks[i].
// x [n, cols], y [n, block_rows]. Only the blocks that occur are decoded.
void multiply_blocks(const PreparedMatrix& matrix, uint32_t block_rows,
                     std::span<const uint32_t> blocks, ConstFloatArray x,
                     FloatArray y);
// The transposed products, which gradients are made of: y[i] = g[i] W_blocks[i]
// with g [n, block_rows], y [n, cols]. Exact weights, sums in float32.
void multiply_blocks_transposed(const PreparedMatrix& matrix,
                                uint32_t block_rows,
                                std::span<const uint32_t> blocks,
                                ConstFloatArray g, FloatArray y);
// Every multiple of block_rows starts a tile.
bool rows_start_tiles(const MatrixHeader& header, uint32_t block_rows);

// Rows `indices` of W as [n, cols], zeros for one that W does not have. With
// the type of the scales (or values) this rounds after the product and after
// the sum, as MLX's dequantize does; to another type it rounds once, from
// float32.
void gather_rows(const PreparedMatrix& matrix,
                 std::span<const uint32_t> indices, FloatArray out);

// All of W, [rows, cols].
void dequantize(const PreparedMatrix& matrix, FloatArray out);

struct RowRange {
  uint32_t begin;
  uint32_t end;
};

// The exact arrays that were coded, for rows of an affine matrix: packed codes
// [n, cols * bits / 8 bytes], scale and bias bits [n, cols / group_size].
void decode_affine(const PreparedMatrix& matrix, RowRange rows, uint8_t* codes,
                   void* scales, void* biases);
// Value bits of a float matrix, or bytes of a symbols matrix: [n, cols].
void decode_dense(const PreparedMatrix& matrix, RowRange rows, void* out);

// Zero-order entropy of each plane's values, in bits a value.
std::vector<double> plane_entropies(const PreparedMatrix& matrix);

}  // namespace mlx_entropy
