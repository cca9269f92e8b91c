// Trees of every shape that the format allows, and matrices coded with them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "codec/tree/encode.h"
#include "format/container.h"
#include "format/tree.h"
#include "format/writer.h"
#include "support/bytes.h"

namespace mlx_entropy::testing {

// Which child of a merge takes the merges below it.
enum class TreeShape { kAny, kLeft, kRight };

// Whole trees of exactly `merges` merges. Classes of leaves are drawn from
// `classes`, so that some are in several leaves and others in none.
class RandomTree {
 public:
  RandomTree(std::mt19937* random, size_t classes, int max_depth,
             TreeShape shape)
      : random_(*random),
        classes_(classes),
        max_depth_(max_depth),
        shape_(shape) {}

  // Null for more than the format allows.
  Tree make(size_t merges) {
    for (int attempt = 0; attempt < 100; ++attempt) {
      tree_ = Tree();
      add(merges);
      if (tree_.link()) return tree_;
      if (max_depth_ > 0) --max_depth_;
    }
    return Tree();
  }

 private:
  size_t below(size_t end) { return random_() % end; }

  void add(size_t merges) {
    if (merges == 0) {
      const auto depth =
          static_cast<uint8_t>(below(static_cast<size_t>(max_depth_) + 1));
      tree_.add(depth);
      for (size_t i = 0; i < size_t{1} << depth; ++i) {
        tree_.symbols.push_back(static_cast<uint8_t>(below(classes_)));
      }
      return;
    }
    const size_t left = shape_ == TreeShape::kLeft    ? merges - 1
                        : shape_ == TreeShape::kRight ? 0
                                                      : below(merges);
    tree_.add(kMerge);
    add(left);
    add(merges - 1 - left);
  }

  std::mt19937& random_;
  size_t classes_;
  int max_depth_;
  TreeShape shape_;
  Tree tree_;
};

// Values that occur in `tree`; a small `spread` makes most values the same.
inline Bytes random_tree_values(std::mt19937* random, const Tree& tree,
                                size_t count, double spread) {
  std::geometric_distribution<size_t> draw(1 / (1 + spread));
  const size_t first = (*random)() % tree.symbols.size();
  Bytes values(count);
  for (uint8_t& value : values) {
    value = tree.symbols[(first + draw(*random)) % tree.symbols.size()];
  }
  return values;
}

inline MatrixHeader tree_symbols_header(const Tree& tree, uint32_t classes,
                                        uint32_t rows, uint32_t cols,
                                        uint32_t tile_rows) {
  MatrixHeader header;
  header.scheme = Scheme::kSymbols;
  header.coder = Coder::kTree;
  header.rows = rows;
  header.cols = cols;
  header.tile_rows = tile_rows;
  header.tiles = static_cast<uint32_t>(ceil_div(rows, tile_rows));
  header.bits = 8;
  Plane& plane = header.planes.emplace_back();
  plane.kind = PlaneKind::kCodes;
  plane.tree = tree;
  plane.tree_classes = classes;
  return header;
}

// A matrix of symbols whose classes are the symbols themselves.
inline Bytes encode_with_tree(const Tree& tree, uint32_t classes,
                              const Bytes& symbols, uint32_t rows,
                              uint32_t cols, uint32_t tile_rows) {
  const MatrixHeader header =
      tree_symbols_header(tree, classes, rows, cols, tile_rows);
  const TreeEncoder encoder(header.planes[0].tree);
  const size_t block = size_t{tree_block_rows(cols)} * cols;
  std::vector<TilePayload> tiles(header.tiles);
  for (uint32_t t = 0; t < header.tiles; ++t) {
    tiles[t].exception_counts = {0};
    const uint8_t* const values = symbols.data() + size_t{t} * tile_rows * cols;
    const size_t count = size_t{header.rows_in_tile(t)} * cols;
    for (size_t first = 0; first < count; first += block) {
      encoder.append(values + first, std::min(block, count - first),
                     &tiles[t].stream);
    }
  }
  return write_container(header, tiles);
}

}  // namespace mlx_entropy::testing
