// Editing coded matrices byte by byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bits.h"
#include "base/hash.h"
#include "format/layout.h"

namespace mlx_entropy::testing {

using Bytes = std::vector<uint8_t>;

inline void fix_checksum(Bytes* bytes) {
  if (bytes->size() < header::kSize) return;
  store(
      bytes->data() + header::kChecksumAt,
      xxh64(bytes->data() + header::kRowsAt, bytes->size() - header::kRowsAt));
}

// Makes the header agree with the size, so that checks behind it are reached.
inline void fix_size(Bytes* bytes) {
  if (bytes->size() < header::kSize) return;
  store(bytes->data() + header::kTotalBytesAt, uint64_t{bytes->size()});
  fix_checksum(bytes);
}

// A copy whose allocation ends with its last byte, so that the address
// sanitizer sees every read past it.
inline Bytes tight_copy(const uint8_t* data, size_t size) {
  return Bytes(data, data + size);
}

}  // namespace mlx_entropy::testing
