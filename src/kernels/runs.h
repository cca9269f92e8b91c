#pragma once

#include <cstddef>
#include <vector>

namespace mlx_entropy {

// Where runs of equal keys start among n sorted ones, and n.
template <class Key>
std::vector<size_t> run_starts(size_t n, const Key& key) {
  std::vector<size_t> starts;
  for (size_t i = 0; i < n; ++i) {
    if (i == 0 || key(i) != key(i - 1)) starts.push_back(i);
  }
  starts.push_back(n);
  return starts;
}

}  // namespace mlx_entropy
