// The shape of a tree code: a binary tree whose leaves are groups of classes.
//
// A leaf of depth d holds 2^d classes, told apart by d plain bits. Every inner
// node (a merge) has a bitmap with a bit for each value below it: 0 for left,
// 1 for right. A decoder merges the values of the two children under the
// bitmap, which needs no table and has no chain from value to value.
//
// M. Zukowski, "PivCo-Huffman", arXiv:2606.05765; wavelet trees: R. Grossi,
// A. Gupta, J. Vitter, "High-order entropy-compressed text indexes", 2003.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"

namespace mlx_entropy {

// In the place of a leaf's depth: a node with two children.
inline constexpr uint8_t kMerge = 0xff;
inline constexpr int kMaxLeafDepth = 8;
inline constexpr size_t kMaxTreeNodes = 511;
inline constexpr size_t kMaxTreeSymbols = 1024;
// Merges above one another.
inline constexpr int kMaxTreeHeight = 32;

struct TreeNode {
  uint8_t depth = 0;     // of a leaf, or kMerge
  uint16_t right = 0;    // of a merge; its left child is the next node
  uint16_t symbols = 0;  // of a leaf: its first class in Tree::symbols
};

struct Tree {
  std::vector<TreeNode> nodes;  // each node before its children, left first
  std::vector<uint8_t> symbols;

  bool empty() const { return nodes.empty(); }

  // Stored form: u16 number of nodes, a byte for each node, then the classes
  // of all leaves.
  size_t stored_bytes() const { return 2 + nodes.size() + symbols.size(); }
  // Appends a leaf or the start of a merge; finish with link().
  void add(uint8_t depth) { nodes.push_back({depth, 0, 0}); }
  // Fills in `right` and `symbols` from the order of nodes. False when the
  // nodes are not one whole tree within the limits above.
  bool link();

  static Result<Tree> parse(const uint8_t* data, size_t size, size_t classes);
};

// Values of a plane are coded in blocks of whole rows that start on a step.
uint32_t tree_block_rows(uint32_t cols);

}  // namespace mlx_entropy
