#include "format/tree.h"

#include <algorithm>

#include "base/bits.h"
#include "format/container.h"

namespace mlx_entropy {
namespace {

// Enough for the bytes that each node of a block wastes on average to vanish,
// and small enough for a block and its parts to stay in the first-level cache.
constexpr uint32_t kBlockValues = 4096;

}  // namespace

uint32_t tree_block_rows(uint32_t cols) {
  const uint32_t unit = row_unit(cols);
  const uint64_t unit_values = uint64_t{unit} * cols;
  return unit * static_cast<uint32_t>(
                    std::max<uint64_t>(1, kBlockValues / unit_values));
}

bool Tree::link() {
  if (nodes.empty() || nodes.size() > kMaxTreeNodes) return false;
  // Merges that still wait for their right child, and with it for their end.
  std::vector<size_t> open;
  size_t next_symbol = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (i > 0 && open.empty()) return false;  // a second tree
    TreeNode& node = nodes[i];
    if (node.depth == kMerge) {
      if (open.size() >= static_cast<size_t>(kMaxTreeHeight)) return false;
      node.right = 0;
      open.push_back(i);
      continue;
    }
    if (node.depth > kMaxLeafDepth) return false;
    node.symbols = static_cast<uint16_t>(next_symbol);
    next_symbol += size_t{1} << node.depth;
    if (next_symbol > kMaxTreeSymbols) return false;
    // What ends here: this leaf, and every merge whose right child it ends.
    while (!open.empty() && nodes[open.back()].right != 0) open.pop_back();
    if (!open.empty()) nodes[open.back()].right = static_cast<uint16_t>(i + 1);
  }
  return open.empty() && next_symbol == symbols.size();
}

Result<Tree> Tree::parse(const uint8_t* data, size_t size, size_t classes) {
  const auto invalid = [] {
    return Status::error("invalid coded matrix: tree");
  };
  if (size < 2) return invalid();
  const size_t n_nodes = load<uint16_t>(data);
  if (n_nodes == 0 || n_nodes > kMaxTreeNodes || size - 2 < n_nodes) {
    return invalid();
  }
  Tree tree;
  size_t n_symbols = 0;
  for (size_t i = 0; i < n_nodes; ++i) {
    const uint8_t depth = data[2 + i];
    tree.add(depth);
    if (depth != kMerge) n_symbols += size_t{1} << std::min<int>(depth, 9);
  }
  if (size - 2 - n_nodes < n_symbols) return invalid();
  const uint8_t* const symbols = data + 2 + n_nodes;
  tree.symbols.assign(symbols, symbols + n_symbols);
  if (!tree.link()) return invalid();
  for (uint8_t symbol : tree.symbols) {
    if (symbol >= classes) return invalid();
  }
  return tree;
}

}  // namespace mlx_entropy
