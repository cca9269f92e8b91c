#include "quant/dense.h"

namespace mlx_entropy {

MatrixHeader FloatSource::describe() const {
  MatrixHeader header;
  header.scheme = Scheme::kFloat;
  header.rows = rows_;
  header.cols = cols_;
  header.bits = bit_width(type_);
  header.float_type = type_;
  header.planes.emplace_back().kind = PlaneKind::kFloats;
  return header;
}

void FloatSource::read(size_t, uint64_t first, size_t count,
                       uint32_t* out) const {
  if (type_ == FloatType::kFloat32) {
    const auto* values = static_cast<const uint32_t*>(values_) + first;
    for (size_t i = 0; i < count; ++i) {
      out[i] = sign_to_low_bit(values[i], 32);
    }
  } else {
    const auto* values = static_cast<const uint16_t*>(values_) + first;
    for (size_t i = 0; i < count; ++i) {
      out[i] = sign_to_low_bit(values[i], 16);
    }
  }
}

MatrixHeader SymbolSource::describe() const {
  MatrixHeader header;
  header.scheme = Scheme::kSymbols;
  header.rows = rows_;
  header.cols = cols_;
  header.bits = 8;
  header.planes.emplace_back().kind = PlaneKind::kCodes;
  return header;
}

void SymbolSource::read(size_t, uint64_t first, size_t count,
                        uint32_t* out) const {
  for (size_t i = 0; i < count; ++i) out[i] = symbols_[first + i];
}

}  // namespace mlx_entropy
