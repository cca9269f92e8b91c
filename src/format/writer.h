// Assembles the bytes of a coded matrix from its encoded tiles.
#pragma once

#include <cstdint>
#include <functional>
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

// Gives the memory for a coded matrix of so many bytes.
using Memory = std::function<uint8_t*(size_t)>;

// `tiles` must be complete and match `header`. Each is freed once it is
// written, so that nearly one copy of the matrix is in memory, not two.
void write_container(const MatrixHeader& header, std::vector<TilePayload> tiles,
                     const Memory& memory);
std::vector<uint8_t> write_container(const MatrixHeader& header,
                                     std::vector<TilePayload> tiles);

// Memory in a vector.
inline Memory memory_of(std::vector<uint8_t>* bytes) {
  return [bytes](size_t size) {
    bytes->resize(size);
    return bytes->data();
  };
}

}  // namespace mlx_entropy
