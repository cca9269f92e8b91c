// Causal attention of query heads that share a key head, one block of keys at
// a time with running maxima and sums, so that scores never leave the cache.
#pragma once

#include "kernels/body/transformer.h"

namespace mlx_entropy::body {
namespace {

inline constexpr size_t kKeyBlock = 64;
inline constexpr size_t kPadding = 16;  // floats of the widest vector

inline size_t padded(size_t n) {
  return (n + kPadding - 1) / kPadding * kPadding;
}

// y[c][j] += sum over k of x[c][k] * w[k][j], for kRows rows and kVectors
// vectors of columns.
template <class Target, size_t kRows, size_t kVectors>
void accumulate_tile(const float* x, size_t x_stride, const float* w,
                     size_t w_stride, size_t depth, float* y, size_t y_stride) {
  using F = typename Target::Float;
  F sums[kRows][kVectors];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) {
      sums[r][v] = Target::load(y + r * y_stride + v * Target::kWidth);
    }
  }
  for (size_t k = 0; k < depth; ++k) {
    F columns[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      columns[v] = Target::load(w + k * w_stride + v * Target::kWidth);
    }
    // Unrolled, or the sums would live in memory.
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const F value = Target::set(x[r * x_stride + k]);
#pragma GCC unroll 16
      for (size_t v = 0; v < kVectors; ++v) {
        sums[r][v] = Target::fma(value, columns[v], sums[r][v]);
      }
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) {
      Target::store(y + r * y_stride + v * Target::kWidth, sums[r][v]);
    }
  }
}

// All rows from `r` on, kRows at a time, then the rest with fewer.
template <class Target, size_t kVectors, size_t kRows = Target::kTileRows>
void accumulate_rows(const float* x, size_t x_stride, size_t rows,
                     const float* w, size_t w_stride, size_t depth, float* y,
                     size_t y_stride, size_t r = 0) {
  for (; r + kRows <= rows; r += kRows) {
    accumulate_tile<Target, kRows, kVectors>(x + r * x_stride, x_stride, w,
                                             w_stride, depth, y + r * y_stride,
                                             y_stride);
  }
  if constexpr (kRows > 1) {
    accumulate_rows<Target, kVectors, kRows - 1>(x, x_stride, rows, w, w_stride,
                                                 depth, y, y_stride, r);
  }
}

// y [rows, cols] += x [rows, depth] * w [depth, cols]; cols is a multiple of
// the vector width.
template <class Target>
void accumulate_product(const float* x, size_t x_stride, size_t rows,
                        const float* w, size_t w_stride, size_t depth,
                        size_t cols, float* y, size_t y_stride) {
  constexpr size_t kWide = Target::kTileVectors * Target::kWidth;
  size_t c = 0;
  for (; c + kWide <= cols; c += kWide) {
    accumulate_rows<Target, Target::kTileVectors>(
        x, x_stride, rows, w + c, w_stride, depth, y + c, y_stride);
  }
  for (; c < cols; c += Target::kWidth) {
    accumulate_rows<Target, 1>(x, x_stride, rows, w + c, w_stride, depth, y + c,
                               y_stride);
  }
}

template <class Target>
void fill(float* to, size_t n, float value) {
  for (size_t i = 0; i < n; ++i) to[i] = value;
}

// `rows` rows of a cache as float32 with padded rows, and zero rows up to
// kKeyBlock. The cache itself when it already is what is wanted.
template <class Target>
const float* key_rows(const AttentionArgs& args, const void* cache,
                      size_t kv_head, size_t first, size_t rows,
                      float* storage) {
  const size_t dim = args.head_dim, stride = padded(dim);
  const size_t start = (kv_head * args.capacity + first) * dim;
  if (args.type == FloatType::kFloat32 && stride == dim && rows == kKeyBlock) {
    return static_cast<const float*>(cache) + start;
  }
  const size_t item = args.type == FloatType::kFloat32 ? 4 : 2;
  const auto* from = static_cast<const uint8_t*>(cache) + start * item;
  if (stride == dim) {
    load_floats<Target>(args.type, from, rows * dim, storage);
  } else {
    for (size_t r = 0; r < rows; ++r, from += dim * item) {
      load_floats<Target>(args.type, from, dim, storage + r * stride);
      fill<Target>(storage + r * stride + dim, stride - dim, 0.0f);
    }
  }
  fill<Target>(storage + rows * stride, (kKeyBlock - rows) * stride, 0.0f);
  return storage;
}

// Scores of `visible` keys to weights relative to the running maximum, zero
// for the other keys up to `keys`. Returns the factor that earlier weights
// have to be multiplied with.
template <class Target>
float softmax_block(float* scores, size_t visible, size_t keys, float* maximum,
                    float* sum) {
  using F = typename Target::Float;
  if (visible == 0) {
    fill<Target>(scores, keys, 0.0f);
    return 1.0f;
  }
  const size_t whole =
      (visible + Target::kWidth - 1) / Target::kWidth * Target::kWidth;
  fill<Target>(scores + visible, whole - visible, -3.4e38f);
  F top = Target::set(*maximum);
  for (size_t i = 0; i < whole; i += Target::kWidth) {
    top = Target::max(top, Target::load(scores + i));
  }
  float values[Target::kWidth];
  Target::store(values, top);
  float high = values[0];
  for (float value : values) high = value > high ? value : high;
  F total = Target::zero();
  const F shift = Target::set(high);
  for (size_t i = 0; i < whole; i += Target::kWidth) {
    const F weight = exp<Target>(Target::sub(Target::load(scores + i), shift));
    Target::store(scores + i, weight);
    total = Target::add(total, weight);
  }
  // What the padding added, about 1e-38 each, is below rounding.
  fill<Target>(scores + visible, keys - visible, 0.0f);
  const float factor =
      high == *maximum ? 1.0f : __builtin_expf(*maximum - high);
  *maximum = high;
  *sum = *sum * factor + Target::sum(total);
  return factor;
}

template <class Target>
void scale_row(float* row, size_t n, float factor) {
  const auto by = Target::set(factor);
  for (size_t i = 0; i < n; i += Target::kWidth) {
    Target::store(row + i, Target::mul(Target::load(row + i), by));
  }
}

template <class Target>
void attend(const AttentionArgs& args, size_t kv_head, size_t first,
            size_t count, Scratch& scratch) {
  const size_t dim = args.head_dim, stride = padded(dim);
  const size_t repeats = args.heads / args.kv_heads;
  const size_t rows = count * repeats;
  float* next = scratch.get<float>(
      Scratch::kAttention,
      rows * (2 * stride + kKeyBlock + 2) + 3 * kKeyBlock * stride);
  const auto take = [&](size_t floats) {
    float* const part = next;
    next += floats;
    return part;
  };
  float* const queries = take(rows * stride);
  float* const sums = take(rows * stride);
  float* const scores = take(rows * kKeyBlock);
  float* const key_storage = take(kKeyBlock * stride);
  float* const value_storage = take(kKeyBlock * stride);
  float* const turned = take(stride * kKeyBlock);
  float* const maxima = take(rows);
  float* const totals = take(rows);

  // Row t * repeats + r is query head r of this key head, for token t.
  const size_t query_stride = args.heads * dim;
  for (size_t t = 0; t < count; ++t) {
    const float* const token = args.queries + (first + t) * query_stride;
    for (size_t r = 0; r < repeats; ++r) {
      const float* const from = token + (kv_head * repeats + r) * dim;
      float* const to = queries + (t * repeats + r) * stride;
      for (size_t i = 0; i < dim; ++i) to[i] = from[i] * args.scale;
      fill<Target>(to + dim, stride - dim, 0.0f);
    }
  }
  fill<Target>(sums, rows * stride, 0.0f);
  fill<Target>(maxima, rows, -3.4e38f);
  fill<Target>(totals, rows, 0.0f);

  const size_t keys = args.offset + first + count;
  for (size_t block = 0; block < keys; block += kKeyBlock) {
    const size_t n = keys - block < kKeyBlock ? keys - block : kKeyBlock;
    const float* const key =
        key_rows<Target>(args, args.keys, kv_head, block, n, key_storage);
    const size_t used = padded(n);
    for (size_t k = 0; k < used; k += Target::kWidth) {
      for (size_t d = 0; d < stride; d += 4) {
        Target::turn4(key + k * stride + d, stride, turned + d * kKeyBlock + k,
                      kKeyBlock);
      }
    }
    fill<Target>(scores, rows * kKeyBlock, 0.0f);
    accumulate_product<Target>(queries, stride, rows, turned, kKeyBlock, stride,
                               used, scores, kKeyBlock);
    for (size_t row = 0; row < rows; ++row) {
      const size_t sees = args.offset + first + row / repeats + 1;
      const size_t visible =
          sees <= block ? 0 : (sees - block < n ? sees - block : n);
      const float factor = softmax_block<Target>(
          scores + row * kKeyBlock, visible, n, maxima + row, totals + row);
      if (factor != 1.0f)
        scale_row<Target>(sums + row * stride, stride, factor);
    }
    const float* const value =
        key_rows<Target>(args, args.values, kv_head, block, n, value_storage);
    accumulate_product<Target>(scores, kKeyBlock, rows, value, stride, n,
                               stride, sums, stride);
  }

  for (size_t row = 0; row < rows; ++row) {
    const size_t head = kv_head * repeats + row % repeats;
    float* const to =
        args.out + (first + row / repeats) * args.out_stride + head * dim;
    const float factor = 1.0f / totals[row];
    for (size_t i = 0; i < dim; ++i) to[i] = sums[row * stride + i] * factor;
  }
}

template <class Target>
constexpr TransformerKernels transformer_kernels() {
  return {rms_norm<Target>,    add<Target>,    silu_multiply<Target>,
          rotate<Target>,      attend<Target>, load_floats<Target>,
          store_floats<Target>};
}

}  // namespace
}  // namespace mlx_entropy::body
