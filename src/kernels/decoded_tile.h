// A tile as integers, or its first rows.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/prepared_matrix.h"

namespace mlx_entropy {

// Values of each plane, in whole steps of 64.
struct DecodedTile {
  DecodedTile(const PreparedMatrix& matrix, uint32_t index, uint32_t rows);

  std::vector<uint32_t> side[kMaxPlanes - 1];
  // The weights plane: words of a float matrix, else codes.
  std::vector<uint8_t> codes;
  std::vector<uint32_t> words;
};

}  // namespace mlx_entropy
