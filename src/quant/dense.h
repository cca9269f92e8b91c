// Matrices that are coded as they are: floating-point weights and symbols.
#pragma once

#include <cstdint>

#include "base/float_bits.h"
#include "quant/plane_source.h"

namespace mlx_entropy {

class FloatSource : public PlaneSource {
 public:
  FloatSource(const void* values, FloatType type, uint32_t rows, uint32_t cols)
      : values_(values), type_(type), rows_(rows), cols_(cols) {}

  MatrixHeader describe() const override;
  void read(size_t plane, uint64_t first, size_t count,
            uint32_t* out) const override;

 private:
  const void* values_;
  FloatType type_;
  uint32_t rows_;
  uint32_t cols_;
};

class SymbolSource : public PlaneSource {
 public:
  SymbolSource(const uint8_t* symbols, uint32_t rows, uint32_t cols)
      : symbols_(symbols), rows_(rows), cols_(cols) {}

  MatrixHeader describe() const override;
  void read(size_t plane, uint64_t first, size_t count,
            uint32_t* out) const override;

 private:
  const uint8_t* symbols_;
  uint32_t rows_;
  uint32_t cols_;
};

}  // namespace mlx_entropy
