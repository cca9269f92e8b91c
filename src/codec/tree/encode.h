// Encoder of one block of a tree plane.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "format/tree.h"

namespace mlx_entropy {

class TreeEncoder {
 public:
  // `tree` must outlive the encoder.
  explicit TreeEncoder(const Tree& tree);

  // Appends the block: for each node in order a merge's bitmap or a leaf's
  // packed bits, each in whole bytes. Every class must be in the tree.
  void append(const uint8_t* classes, size_t count,
              std::vector<uint8_t>* out) const;

 private:
  // Classes below the node, and their place among its leaf's.
  struct Member {
    std::array<uint8_t, 256> right;  // of a merge: 1 if in its right child
    std::array<uint8_t, 256> index;  // of a leaf
    bool is_identity = false;        // of a leaf: index[c] is c
  };

  void append_node(size_t node, uint8_t* classes, size_t count, uint8_t* spare,
                   std::vector<uint8_t>* out) const;
  void append_leaf(size_t node, const uint8_t* classes, size_t count,
                   std::vector<uint8_t>* out) const;

  const Tree& tree_;
  std::vector<Member> members_;
};

}  // namespace mlx_entropy
