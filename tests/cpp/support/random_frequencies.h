// Frequency tables of every shape that the format allows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace mlx_entropy::testing {

// `classes` frequencies that sum to `total`, each below it. A random power of
// each share makes flat tables as likely as very skewed ones, with zeros.
inline std::vector<uint16_t> random_frequencies(std::mt19937* random,
                                                size_t classes,
                                                uint32_t total) {
  std::uniform_int_distribution<size_t> pick(0, classes - 1);
  std::vector<uint16_t> frequencies(classes, 0);
  const size_t first = pick(*random);
  const size_t second = (first + 1) % classes;
  frequencies[first] = 1;
  frequencies[second] = 1;
  uint32_t left = total - 2;
  while (left > 0) {
    const uint32_t most = std::uniform_int_distribution<uint32_t>(
        1, std::uniform_int_distribution<uint32_t>(1, left)(*random))(*random);
    frequencies[pick(*random)] += static_cast<uint16_t>(most);
    left -= most;
  }
  return frequencies;
}

}  // namespace mlx_entropy::testing
