// For merging the values of two children of a tree node eight at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace mlx_entropy {

// Row m takes element i from the next of the upper eight bytes of a vector if
// bit i is set in m, else from the next of the lower eight.
constexpr auto make_merge_orders() {
  std::array<std::array<uint8_t, 8>, 256> rows{};
  for (size_t mask = 0; mask < 256; ++mask) {
    uint8_t left = 0, right = 8;
    for (size_t i = 0; i < 8; ++i) {
      rows[mask][i] = (mask >> i & 1) != 0 ? right++ : left++;
    }
  }
  return rows;
}

alignas(64) inline constexpr auto kMergeOrders = make_merge_orders();

}  // namespace mlx_entropy
