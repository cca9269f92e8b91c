// Encoding and exact decoding of arrays, evaluated at once.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "convert/codec_choice.h"
#include "mlx/array.h"

namespace mlx_entropy {

namespace mx = mlx::core;

// Frequencies of an entropy-coded alphabet; see table_from_counts().
struct RansTable {
  std::vector<uint16_t> frequencies;

  static RansTable from_counts(const std::vector<uint64_t>& counts);
  int precision_bits() const;
  // Bits a symbol, escapes included.
  double cost(const std::vector<uint64_t>& counts) const;
};

struct PlaneInfo {
  std::string name;
  size_t classes;
  int raw_bits;
  uint32_t base;
  std::vector<uint16_t> frequencies;
  uint64_t exceptions;
  uint64_t count;
};

struct CodedInfo {
  std::string scheme;
  std::string codec;
  uint32_t rows, cols;
  int bits;
  uint32_t group_size;
  mx::Dtype dtype;
  uint32_t tile_rows, tiles;
  uint64_t nbytes;
  std::vector<PlaneInfo> planes;
};

mx::array entropy_encode(mx::array symbols, const RansTable* table,
                         int tile_rows);
mx::array entropy_decode(mx::array coded, int64_t row_start,
                         std::optional<int64_t> row_stop);
mx::array encode_affine(mx::array weight, mx::array scales, mx::array biases,
                        int group_size, int bits, int tile_rows,
                        int block_rows);
std::vector<mx::array> decode_affine(mx::array coded, int64_t row_start,
                                     std::optional<int64_t> row_stop);
mx::array encode_float(mx::array weight, int tile_rows, int block_rows);
mx::array decode_float(mx::array coded, int64_t row_start,
                       std::optional<int64_t> row_stop);

// `coded` in another codec: "rans", "tree" (compact, or with a pass cost),
// "flat" (a tree of one leaf) or "auto" (the first of rank_codecs).
mx::array transcode_array(mx::array coded, const std::string& codec,
                          std::optional<double> pass_cost);
std::vector<CodecChoice> rank_codecs_array(mx::array coded);

CodedInfo validate_array(mx::array coded);
CodedInfo describe_array(mx::array coded);
std::vector<std::pair<std::string, double>> plane_entropies_array(
    mx::array coded);

}  // namespace mlx_entropy
