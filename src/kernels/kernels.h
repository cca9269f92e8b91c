// One table of functions per target, and the choice of the target.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kernels/activations.h"
#include "kernels/prepared_matrix.h"
#include "kernels/scratch.h"
#include "kernels/transformer.h"

namespace mlx_entropy {

// y[b, n] = sum over k of x[b, k] * W[first_row + n, k], float32.
struct ProductArgs {
  const PreparedMatrix* matrix = nullptr;
  size_t batch = 0;
  // Of a float matrix: [batch, x_stride], zero beyond cols; x_stride is a
  // multiple of 16.
  const float* x = nullptr;
  size_t x_stride = 0;
  // Of an affine matrix: `batch` rows.
  const Activations* activations = nullptr;
  float* y = nullptr;  // [batch, y_stride]
  size_t y_stride = 0;
  uint32_t first_row = 0;
};

// Where decode_tile puts the values of a tile; null pointers are skipped.
struct TileValues {
  // Planes before the weights plane: all values of the tile.
  uint32_t* side[kMaxPlanes - 1] = {};
  // The first `rows` rows of the weights plane, as bytes (codes) or as words
  // (floats); room for whole steps of 64.
  uint32_t rows = 0;
  uint8_t* codes = nullptr;
  uint32_t* words = nullptr;
};

struct KernelTable {
  const char* name;
  // Tiles that one thread decodes in lockstep at most: their independent
  // streams hide the latency of each other's state updates.
  uint32_t max_streams;
  // The product for `count` tiles from `first`, at most max_streams.
  void (*product)(const ProductArgs& args, uint32_t first, uint32_t count,
                  Scratch& scratch);
  // One row of x to integers, without its outliers; see Activations. Returns
  // the largest magnitude of the others, infinity if it is not finite.
  float (*quantize_row)(const float* x, size_t cols, size_t group_size,
                        uint8_t* values, float* scales, float* sums,
                        Outliers& outliers);
  void (*decode_tile)(const PreparedMatrix& matrix, uint32_t tile,
                      const TileValues& out, Scratch& scratch);
  // The streams of the tile end where and how they must. Unlike the other
  // functions, safe on streams that nobody has checked.
  bool (*check_tile)(const PreparedMatrix& matrix, uint32_t tile,
                     Scratch& scratch);
  // What a transformer does between its products.
  const TransformerKernels* transformer;
};

const KernelTable& scalar_kernels();
#if defined(__x86_64__)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& avx512bw_kernels();
#elif defined(__aarch64__)
const KernelTable& neon_kernels();
#endif

// Targets that this machine can run, best first; never empty.
const std::vector<const KernelTable*>& available_targets();
// The best one, or the one that MLX_ENTROPY_TARGET or set_target() names.
const KernelTable& active_target();
Status set_target(std::string_view name);

}  // namespace mlx_entropy
