// Decodes a block of a tree plane: leaves first, then merges up to the root.
//
// `Target` adds:
//   merge(bitmap, count, left, right, out)
//       out[i] = next of right where bit i of the bitmap is set, else next of
//       left. May read 8 bytes beyond the bitmap and 128 beyond the values, and
//       write whole steps of 64.
//   unpack<depth>(packed, count, table, out)
//       out[i] = table[depth bits of packed, from bit depth * i], depth 1 to 8.
//       May read 64 bytes beyond and write whole steps. Tables of at most 16
//       entries are repeated to 64.
#pragma once

#include "kernels/prepared_matrix.h"

namespace mlx_entropy::body {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

// Room after the values of each node for what merge() reads and writes, and
// to start the next on a cache line.
inline constexpr size_t kNodeSlack = 192;

inline size_t node_room(size_t count) {
  return (count + kNodeSlack + 63) / 64 * 64;
}

inline size_t count_ones(const uint8_t* bitmap, size_t count) {
  size_t ones = 0;
  size_t i = 0;
  for (; i + 64 <= count; i += 64) {
    ones += static_cast<size_t>(
        __builtin_popcountll(load<uint64_t>(bitmap + i / 8)));
  }
  if (i < count) {
    const uint64_t last =
        load<uint64_t>(bitmap + i / 8) & (~uint64_t{0} >> (64 - (count - i)));
    ones += static_cast<size_t>(__builtin_popcountll(last));
  }
  return ones;
}

template <class Target>
void unpack_leaf(int depth, const uint8_t* packed, size_t count,
                 const uint8_t* table, uint8_t* out) {
  switch (depth) {
    case 0:
      __builtin_memset(out, table[0], count);
      break;
    case 1:
      return Target::template unpack<1>(packed, count, table, out);
    case 2:
      return Target::template unpack<2>(packed, count, table, out);
    case 3:
      return Target::template unpack<3>(packed, count, table, out);
    case 4:
      return Target::template unpack<4>(packed, count, table, out);
    case 5:
      return Target::template unpack<5>(packed, count, table, out);
    case 6:
      return Target::template unpack<6>(packed, count, table, out);
    case 7:
      return Target::template unpack<7>(packed, count, table, out);
    default:
      return Target::template unpack<8>(packed, count, table, out);
  }
}

// Returns the end of the node's bytes. `spare` is room for what is below.
template <class Target>
const uint8_t* decode_node(const TreeTables& tree, size_t index, size_t count,
                           const uint8_t* bytes, uint8_t* out, uint8_t* spare) {
  const TreeNode& node = tree.node(index);
  if (node.depth != kMerge) {
    unpack_leaf<Target>(node.depth, bytes, count, tree.table(index), out);
    return bytes + (count * node.depth + 7) / 8;
  }
  const uint8_t* const bitmap = bytes;
  bytes += (count + 7) / 8;
  const size_t right_count = Target::count_ones(bitmap, count);
  const size_t left_count = count - right_count;
  uint8_t* const left = spare;
  uint8_t* const right = left + node_room(left_count);
  spare = right + node_room(right_count);
  bytes = decode_node<Target>(tree, index + 1, left_count, bytes, left, spare);
  bytes =
      decode_node<Target>(tree, node.right, right_count, bytes, right, spare);
  Target::merge(bitmap, count, left, right, out);
  return bytes;
}

// Bytes that decode_node needs below a root of `count` values. Both children
// of a merge round up to cache lines: together they take up to one line more
// than their values and slack.
inline size_t tree_spare_bytes(const TreeTables& tree, size_t count) {
  return tree.height() * (node_room(count) + node_room(1));
}

template <class Target>
const uint8_t* decode_block(const TreeTables& tree, size_t count,
                            const uint8_t* bytes, uint8_t* out,
                            Scratch& scratch) {
  uint8_t* const spare =
      scratch.get<uint8_t>(Scratch::kNodes, tree_spare_bytes(tree, count));
  return decode_node<Target>(tree, 0, count, bytes, out, spare);
}

// The end of a node's bytes, or null if they do not fit before `end`.
inline const uint8_t* check_node(const TreeTables& tree, size_t index,
                                 size_t count, const uint8_t* bytes,
                                 const uint8_t* end) {
  const TreeNode& node = tree.node(index);
  const bool merge = node.depth == kMerge;
  const size_t size = (count * (merge ? 1 : node.depth) + 7) / 8;
  if (static_cast<size_t>(end - bytes) < size) return nullptr;
  if (!merge) return bytes + size;
  const size_t ones = count_ones(bytes, count);
  const uint8_t* const right =
      check_node(tree, index + 1, count - ones, bytes + size, end);
  if (right == nullptr) return nullptr;
  return check_node(tree, node.right, ones, right, end);
}

}  // namespace
}  // namespace mlx_entropy::body
