// Lazy operations on coded weights. Arguments are checked here; the coded
// bytes are checked when they are first evaluated.
#pragma once

#include "mlx/array.h"
#include "mlx/utils.h"

namespace mlx_entropy {

namespace mx = mlx::core;

mx::array entropy_coded_matmul(const mx::array& x, const mx::array& coded,
                               int output_dims, mx::StreamOrDevice s = {});

// Products with blocks of output_dims rows (experts), like mx.gather_qmm.
mx::array entropy_coded_gather_matmul(const mx::array& x,
                                      const mx::array& coded,
                                      const mx::array& indices, int output_dims,
                                      mx::StreamOrDevice s = {});

// The same with the blocks (of as many rows as x has columns) transposed.
mx::array entropy_coded_gather_transposed(const mx::array& x,
                                          const mx::array& coded,
                                          const mx::array& indices,
                                          int output_dims,
                                          mx::StreamOrDevice s = {});

mx::array entropy_coded_embedding(const mx::array& indices,
                                  const mx::array& coded, int dims,
                                  mx::Dtype dtype, mx::StreamOrDevice s = {});

mx::array entropy_dequantize(const mx::array& coded, int rows, int cols,
                             mx::Dtype dtype, mx::StreamOrDevice s = {});

}  // namespace mlx_entropy
