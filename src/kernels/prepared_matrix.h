// A parsed matrix with the decode tables of its planes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "codec/rans/model.h"
#include "format/container.h"

namespace mlx_entropy {

// A tree with each leaf's classes where vector loads want them.
class TreeTables {
 public:
  TreeTables() = default;
  explicit TreeTables(const Tree& tree);

  const TreeNode& node(size_t index) const { return nodes_[index]; }
  // Of a leaf: its classes, at least 64 entries; repeated if it has at most 16.
  const uint8_t* table(size_t index) const {
    return lines_[first_line_[index]].data();
  }
  // Merges above one another, at most.
  size_t height() const { return height_; }

 private:
  struct alignas(64) Line : std::array<uint8_t, 64> {};

  std::vector<TreeNode> nodes_;
  std::vector<uint16_t> first_line_;  // of each leaf
  std::vector<Line> lines_;
  size_t height_ = 0;
};

struct PlaneTables {
  AliasTable alias{};           // rans16
  std::vector<uint32_t> slots;  // rans32
  TreeTables tree;
  alignas(64) std::array<uint8_t, 256> palette{};
};

class PreparedMatrix {
 public:
  // Structure only; see validate() for the streams. The bytes must outlive
  // the result.
  static Result<std::shared_ptr<const PreparedMatrix>> make(const uint8_t* data,
                                                            size_t size);

  const Container& container() const { return container_; }
  const MatrixHeader& header() const { return container_.header(); }
  const PlaneTables& tables(size_t plane) const { return tables_[plane]; }
  // The plane with one value for each weight: always the last.
  size_t weights_plane() const { return header().planes.size() - 1; }

 private:
  explicit PreparedMatrix(Container container);

  Container container_;
  std::vector<PlaneTables> tables_;
};

}  // namespace mlx_entropy
