// Assembles the bytes of a coded matrix from its encoded tiles.
#pragma once

#include <cstdint>
#include <vector>

#include "format/container.h"

namespace mlx_entropy {

struct TilePayload {
  std::vector<uint32_t> exception_counts;  // one for each plane
  std::vector<uint8_t> states;             // empty when no plane is coded
  std::vector<uint8_t> raw;                // all planes, in order
  std::vector<Exception> exceptions;       // all planes, in order
  std::vector<uint8_t> stream;

  size_t bytes() const {
    return 4 * exception_counts.size() + states.size() + raw.size() +
           kExceptionSize * exceptions.size() + stream.size();
  }
};

// `tiles` must be complete and match `header`.
std::vector<uint8_t> write_container(const MatrixHeader& header,
                                     const std::vector<TilePayload>& tiles);

}  // namespace mlx_entropy
