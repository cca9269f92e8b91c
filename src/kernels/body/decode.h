// Exact decoding of a tile, and the check that makes its streams safe.
#pragma once

#include "kernels/body/tile_reader.h"

namespace mlx_entropy::body {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

template <class Target>
void decode_tile(const PreparedMatrix& matrix, uint32_t index,
                 const TileValues& values, Scratch& scratch) {
  const MatrixHeader& header = matrix.header();
  TileReader<Target, 1> reader(matrix, index, scratch);
  for (size_t p = 0; p < header.planes.size(); ++p) {
    const bool is_weights = p == matrix.weights_plane();
    const TilePlane& tile = reader.tile(0).planes[p];
    const size_t count =
        is_weights ? size_t{values.rows} * header.cols : tile.values;
    const size_t steps = (count + kLanes - 1) / kLanes;
    uint8_t* classes =
        scratch.get<uint8_t>(Scratch::kClasses, steps * kLanes + kLanes);
    if (is_weights && values.codes != nullptr) classes = values.codes;
    uint32_t* const words = is_weights ? values.words : values.side[p];
    reader.read_classes(p, steps, &classes);
    uint32_t next_exception = 0;
    if (is_weights && values.codes != nullptr) {
      assemble<Target>(header.planes[p], matrix.tables(p), tile, 0, steps,
                       classes, classes, &next_exception);
    } else if (words != nullptr) {
      assemble<Target>(header.planes[p], matrix.tables(p), tile, 0, steps,
                       classes, words, &next_exception);
    }
  }
}

inline bool check_tree_tile(const PreparedMatrix& matrix, uint32_t index) {
  const size_t plane = matrix.weights_plane();
  const Tile tile = matrix.container().tile(index);
  const uint32_t cols = matrix.header().cols;
  const uint64_t block = uint64_t{tree_block_rows(cols)} * cols;
  const uint8_t* at = tile.stream;
  for (uint64_t first = 0; first < tile.planes[plane].values; first += block) {
    const uint64_t left = tile.planes[plane].values - first;
    at = check_node(matrix.tables(plane).tree, 0, left < block ? left : block,
                    at, tile.stream_end);
    if (at == nullptr) return false;
  }
  return at == tile.stream_end;
}

// Decodes every stream in pieces. A piece takes at most 2 bytes a symbol, so
// while that many bytes and the tail padding are left it cannot leave the
// buffer; the last ones go step by step, which the padding alone covers.
template <class Target>
bool check_tile(const PreparedMatrix& matrix, uint32_t index,
                Scratch& scratch) {
  constexpr size_t kPiece = 64;
  const MatrixHeader& header = matrix.header();
  if (!header.any_coded()) return true;
  if (header.coder == Coder::kTree) return check_tree_tile(matrix, index);
  TileReader<Target, 1> reader(matrix, index, scratch);
  const Tile& tile = reader.tile(0);
  uint8_t* const classes =
      scratch.get<uint8_t>(Scratch::kClasses, kPiece * kLanes);
  for (size_t p = 0; p < header.planes.size(); ++p) {
    if (!header.planes[p].coded()) continue;
    size_t steps = tile.planes[p].steps();
    while (steps > 0) {
      if (reader.stream(0) > tile.stream_end) return false;
      const auto left = static_cast<size_t>(tile.stream_end - reader.stream(0));
      size_t n = left >= 2 * kPiece * kLanes ? kPiece : 1;
      if (n > steps) n = steps;
      reader.read_classes(p, n, &classes);
      steps -= n;
    }
  }
  if (reader.stream(0) != tile.stream_end) return false;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    if (reader.state(0, lane) != header.limits().initial_state) return false;
  }
  return true;
}

}  // namespace
}  // namespace mlx_entropy::body
