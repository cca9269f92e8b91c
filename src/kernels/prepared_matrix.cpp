#include "kernels/prepared_matrix.h"

#include <algorithm>

namespace mlx_entropy {

TreeTables::TreeTables(const Tree& tree)
    : nodes_(tree.nodes), first_line_(tree.nodes.size()) {
  std::vector<size_t> heights(tree.nodes.size(), 0);
  for (size_t i = nodes_.size(); i-- > 0;) {
    const TreeNode& node = nodes_[i];
    if (node.depth == kMerge) {
      heights[i] = 1 + std::max(heights[i + 1], heights[node.right]);
      continue;
    }
    first_line_[i] = static_cast<uint16_t>(lines_.size());
    const size_t size = size_t{1} << node.depth;
    lines_.resize(lines_.size() + std::max<size_t>(1, size / 64));
    for (size_t k = 0; k < std::max<size_t>(64, size); ++k) {
      lines_[first_line_[i] + k / 64][k % 64] =
          tree.symbols[node.symbols + k % size];
    }
  }
  height_ = heights.empty() ? 0 : heights[0];
}

PreparedMatrix::PreparedMatrix(Container container)
    : container_(std::move(container)) {
  for (const Plane& plane : header().planes) {
    PlaneTables& tables = tables_.emplace_back();
    std::copy(plane.palette.begin(), plane.palette.end(),
              tables.palette.begin());
    if (!plane.coded()) continue;
    if (!plane.tree.empty()) {
      tables.tree = TreeTables(plane.tree);
    } else if (header().coder == Coder::kRans16) {
      tables.alias = AliasTable::build(plane.frequencies);
    } else {
      tables.slots = build_slot_table(plane.frequencies);
    }
  }
}

Result<std::shared_ptr<const PreparedMatrix>> PreparedMatrix::make(
    const uint8_t* data, size_t size) {
  Result<Container> container = Container::parse(data, size);
  if (!container.ok()) return container.status();
  return std::shared_ptr<const PreparedMatrix>(
      new PreparedMatrix(std::move(container.value())));
}

}  // namespace mlx_entropy
