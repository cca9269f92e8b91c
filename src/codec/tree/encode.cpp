#include "codec/tree/encode.h"

#include <algorithm>
#include <memory>

#include "base/bits.h"

namespace mlx_entropy {
namespace {

// The lowest `depth` bits of each byte, one after another: neighbours join to
// pairs, pairs to fours, and fours to eights.
uint64_t pack_bytes(uint64_t x, int depth) {
  x = (x & 0x00ff00ff00ff00ff) | ((x & 0xff00ff00ff00ff00) >> (8 - depth));
  x = (x & 0x0000ffff0000ffff) | ((x & 0xffff0000ffff0000) >> (16 - 2 * depth));
  return (x & 0x00000000ffffffff) |
         ((x & 0xffffffff00000000) >> (32 - 4 * depth));
}

}  // namespace

TreeEncoder::TreeEncoder(const Tree& tree)
    : tree_(tree), members_(tree.nodes.size()) {
  // From the last node back: the classes of a subtree are those between the
  // first symbol of its first leaf and the next subtree's.
  std::vector<size_t> end(tree.nodes.size());
  for (size_t i = tree.nodes.size(); i-- > 0;) {
    const TreeNode& node = tree.nodes[i];
    Member& member = members_[i];
    member.right.fill(0);
    member.index.fill(0);
    if (node.depth != kMerge) {
      end[i] = i + 1;
      const size_t size = size_t{1} << node.depth;
      // Repeated classes at the end: the first one wins.
      for (size_t k = size; k-- > 0;) {
        member.index[tree.symbols[node.symbols + k]] = static_cast<uint8_t>(k);
      }
      member.is_identity = true;
      for (size_t k = 0; k < size; ++k) {
        member.is_identity &= tree.symbols[node.symbols + k] == k;
      }
      continue;
    }
    end[i] = end[node.right];
    for (size_t k = node.right; k < end[i]; ++k) {
      const TreeNode& leaf = tree.nodes[k];
      if (leaf.depth == kMerge) continue;
      for (size_t s = 0; s < size_t{1} << leaf.depth; ++s) {
        member.right[tree.symbols[leaf.symbols + s]] = 1;
      }
    }
  }
}

void TreeEncoder::append(const uint8_t* classes, size_t count,
                         std::vector<uint8_t>* out) const {
  if (tree_.nodes[0].depth != kMerge)
    return append_leaf(0, classes, count, out);
  // A merge's children together take the room of the merge itself; the
  // classes that go right move to the next part of it.
  const auto room =
      std::make_unique_for_overwrite<uint8_t[]>(count * (kMaxTreeHeight + 2));
  std::copy(classes, classes + count, room.get());
  append_node(0, room.get(), count, room.get() + count, out);
}

void TreeEncoder::append_node(size_t index, uint8_t* classes, size_t count,
                              uint8_t* spare, std::vector<uint8_t>* out) const {
  const TreeNode& node = tree_.nodes[index];
  if (node.depth != kMerge) return append_leaf(index, classes, count, out);
  const uint8_t* const goes_right = members_[index].right.data();
  size_t at = out->size();
  out->resize(at + ceil_div(count, 8));
  size_t left = 0, right = 0;
  for (size_t i = 0; i < count; i += 8) {
    const size_t n = std::min<size_t>(8, count - i);
    uint32_t bits = 0;
    for (size_t k = 0; k < n; ++k) {
      const uint8_t value = classes[i + k];
      const uint32_t bit = goes_right[value];
      bits |= bit << k;
      // Both are written; the one that does not count is overwritten.
      classes[left] = value;
      spare[right] = value;
      left += 1 - bit;
      right += bit;
    }
    (*out)[at++] = static_cast<uint8_t>(bits);
  }
  append_node(index + 1, classes, left, spare + right, out);
  append_node(node.right, spare, right, spare + right, out);
}

void TreeEncoder::append_leaf(size_t index, const uint8_t* classes,
                              size_t count, std::vector<uint8_t>* out) const {
  const int depth = tree_.nodes[index].depth;
  if (depth == 0) return;
  const uint8_t* const place = members_[index].index.data();
  size_t at = out->size();
  out->resize(at + ceil_div(count * static_cast<size_t>(depth), 8));
  size_t i = 0;
  if (members_[index].is_identity) {
    // Eight bytes are stored of which `depth` count.
    for (; i + 8 <= count && at + 8 <= out->size();
         i += 8, at += static_cast<size_t>(depth)) {
      store(out->data() + at, pack_bytes(load<uint64_t>(classes + i), depth));
    }
  }
  for (; i < count; i += 8) {
    uint64_t bits = 0;  // 8 values fill `depth` bytes
    const size_t n = std::min<size_t>(8, count - i);
    for (size_t k = 0; k < n; ++k) {
      bits |= uint64_t{place[classes[i + k]]} << (static_cast<int>(k) * depth);
    }
    const size_t bytes = ceil_div(n * static_cast<size_t>(depth), 8);
    for (size_t k = 0; k < bytes; ++k) {
      (*out)[at++] = static_cast<uint8_t>(bits >> (8 * k));
    }
  }
}

}  // namespace mlx_entropy
