// A coded matrix in memory: parsed header, planes, and where each tile is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/bits.h"
#include "base/float_bits.h"
#include "base/status.h"
#include "format/layout.h"
#include "format/tree.h"

namespace mlx_entropy {

struct Plane {
  PlaneKind kind = PlaneKind::kCodes;
  int raw_bits = 0;
  int shift = 0;
  uint32_t base = 0;
  std::vector<uint16_t> frequencies;
  // Codes only: symbols of similar frequency share a class, wherever they are.
  std::vector<uint8_t> palette;
  // In a tree container, of the weights plane if it is coded, instead of
  // frequencies.
  Tree tree;
  uint32_t tree_classes = 0;

  size_t classes() const {
    return tree.empty() ? frequencies.size() : tree_classes;
  }
  // A plane with one class is a constant plus raw bits: it has no symbols in
  // the stream.
  bool coded() const { return classes() > 1; }
  bool per_group() const {
    return kind != PlaneKind::kCodes && kind != PlaneKind::kFloats;
  }
};

const char* plane_name(PlaneKind kind);

struct MatrixHeader {
  Scheme scheme = Scheme::kSymbols;
  Coder coder = Coder::kRans16;
  uint32_t rows = 0;
  uint32_t cols = 0;
  uint32_t tile_rows = 0;
  uint32_t tiles = 0;
  int bits = 0;
  FloatType float_type = FloatType::kNone;
  uint32_t group_size = 0;
  std::vector<Plane> planes;

  const CoderLimits& limits() const { return coder_limits(coder); }
  bool any_coded() const;
  // Tiles begin with the states of 64 lanes.
  bool has_states() const { return coder != Coder::kTree && any_coded(); }

  // Rows of tile `tile`; the last one may have fewer than tile_rows.
  uint32_t rows_in_tile(uint32_t tile) const {
    const uint32_t first = tile * tile_rows;
    return rows - first < tile_rows ? rows - first : tile_rows;
  }
  // Values of a plane in `n_rows` rows.
  uint64_t values(const Plane& plane, uint64_t n_rows) const {
    return n_rows * cols / (plane.per_group() ? group_size : 1);
  }
  // Bits of a plane's values: the width that exceptions and bases must fit.
  int value_bits(const Plane& plane) const;
};

struct Exception {
  uint32_t index;
  uint32_t value;
};

struct TilePlane {
  uint64_t values = 0;
  const uint8_t* raw = nullptr;  // ceil(values / 64) steps
  const uint8_t* exceptions = nullptr;
  uint32_t n_exceptions = 0;

  uint64_t steps() const { return ceil_div(values, kLanes); }
  Exception exception(size_t i) const {
    const uint8_t* p = exceptions + i * kExceptionSize;
    return {load<uint32_t>(p), load<uint32_t>(p + 4)};
  }
};

struct Tile {
  uint32_t rows = 0;
  const uint8_t* states = nullptr;
  const uint8_t* stream = nullptr;
  const uint8_t* stream_end = nullptr;
  std::array<TilePlane, kMaxPlanes> planes;
};

class Container {
 public:
  // Checks the whole structure: every count, size, offset and table, so that
  // tile() is safe for each tile. Does not read the streams.
  static Result<Container> parse(const uint8_t* data, size_t size);

  // The stored checksum matches the bytes.
  Status check_hash() const;

  const MatrixHeader& header() const { return header_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  Tile tile(uint32_t index) const;
  uint64_t exceptions(size_t plane) const;

 private:
  Container() = default;

  Status parse_header();
  Status parse_planes(size_t* at);
  Status parse_frequencies(size_t classes, Plane* plane, size_t* at) const;
  Status check_geometry() const;
  Status check_tiles() const;
  Status check_tile(uint32_t index) const;
  bool states_in_range(const Tile& tile) const;
  const uint8_t* tile_begin(uint32_t index) const {
    return data_ + load<uint64_t>(data_ + tile_table_ + 8 * size_t{index});
  }

  MatrixHeader header_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  size_t tile_table_ = 0;
};

// Smallest number of rows whose symbols fill whole steps of 64: tiles and
// blocks are multiples of it, so that they start on a step.
uint32_t row_unit(uint32_t cols);

}  // namespace mlx_entropy
