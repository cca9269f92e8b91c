// A weight matrix seen as integer planes, the form that the codecs take.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format/container.h"

namespace mlx_entropy {

class PlaneSource {
 public:
  virtual ~PlaneSource() = default;

  // Scheme, shape, types, and the kinds of the planes; no frequencies yet.
  virtual MatrixHeader describe() const = 0;

  // Values [first, first + count) of a plane in row-major order. Safe from
  // several threads. `first` and, but for the end, `count` are multiples of 8.
  virtual void read(size_t plane, uint64_t first, size_t count,
                    uint32_t* out) const = 0;

  // All values of a plane whose values are bytes in memory; null for others.
  virtual const uint8_t* bytes(size_t /*plane*/) const { return nullptr; }
};

}  // namespace mlx_entropy
