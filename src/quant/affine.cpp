#include "quant/affine.h"

#include <cmath>

#include "base/bits.h"

namespace mlx_entropy {
namespace {

template <size_t kBits>
void unpack(const uint8_t* p, size_t count, uint32_t* out) {
  for (size_t i = 0; i < count; i += 8, p += kBits) {
    uint64_t word = 0;
    __builtin_memcpy(&word, p, kBits);
    for (size_t k = 0; k < 8; ++k) {
      out[i + k] = static_cast<uint32_t>(word >> (kBits * k)) &
                   ((uint32_t{1} << kBits) - 1);
    }
  }
}

uint32_t element(const void* array, FloatType type, uint64_t index) {
  return type == FloatType::kFloat32
             ? static_cast<const uint32_t*>(array)[index]
             : static_cast<const uint16_t*>(array)[index];
}

}  // namespace

uint32_t predicted_bias(FloatType type, uint32_t scale, int32_t offset) {
  if (offset == 0) return 0;
  return from_float(type, to_float(type, scale) * static_cast<float>(offset));
}

int32_t bias_offset(FloatType type, uint32_t scale, uint32_t bias) {
  const float ratio = to_float(type, bias) / to_float(type, scale);
  // A code has at most 8 bits, so larger offsets are no prediction; a NaN
  // fails the comparison too.
  if (!(std::abs(ratio) < 512.0f)) return 0;
  const auto offset = static_cast<int32_t>(std::lrint(ratio));
  const int width = bit_width(type);
  const int64_t distance =
      int64_t{ordered_from_bits(bias, width)} -
      ordered_from_bits(predicted_bias(type, scale, offset), width);
  const bool fits = distance == static_cast<int32_t>(distance);
  return fits ? offset : 0;
}

AffineSource::AffineSource(const AffineArrays& arrays, BiasMode mode)
    : arrays_(arrays), mode_(mode) {
  if (mode == BiasMode::kStored) return;
  // Every plane and every pass needs them, and each takes a division.
  const FloatType type = arrays.float_type;
  offsets_.resize(uint64_t{arrays.rows} * (arrays.cols / arrays.group_size));
  for (size_t i = 0; i < offsets_.size(); ++i) {
    offsets_[i] =
        static_cast<int16_t>(bias_offset(type, element(arrays.scales, type, i),
                                         element(arrays.biases, type, i)));
  }
}

MatrixHeader AffineSource::describe() const {
  MatrixHeader header;
  header.scheme = Scheme::kAffine;
  header.rows = arrays_.rows;
  header.cols = arrays_.cols;
  header.bits = arrays_.bits;
  header.float_type = arrays_.float_type;
  header.group_size = arrays_.group_size;
  std::vector<PlaneKind> kinds = {PlaneKind::kScales};
  if (mode_ == BiasMode::kPredicted) {
    kinds.insert(kinds.end(), {PlaneKind::kOffsets, PlaneKind::kCorrections});
  } else {
    kinds.push_back(PlaneKind::kBiases);
  }
  kinds.push_back(PlaneKind::kCodes);
  for (PlaneKind kind : kinds) {
    header.planes.emplace_back().kind = kind;
  }
  return header;
}

void AffineSource::read(size_t plane, uint64_t first, size_t count,
                        uint32_t* out) const {
  const FloatType type = arrays_.float_type;
  const int width = bit_width(type);
  const size_t codes_plane = mode_ == BiasMode::kPredicted ? 3 : 2;
  if (plane == codes_plane) {
    unpack_codes(reinterpret_cast<const uint8_t*>(arrays_.codes), arrays_.bits,
                 first, count, out);
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    const uint32_t scale = element(arrays_.scales, type, first + i);
    const uint32_t bias = element(arrays_.biases, type, first + i);
    if (plane == 0) {
      out[i] = sign_to_low_bit(scale, width);
    } else if (mode_ == BiasMode::kStored) {
      out[i] = sign_to_low_bit(bias, width);
    } else {
      const int32_t offset = offsets_[first + i];
      const int32_t predicted =
          ordered_from_bits(predicted_bias(type, scale, offset), width);
      out[i] = plane == 1
                   ? static_cast<uint32_t>(offset) + kOffsetBias
                   : static_cast<uint32_t>(ordered_from_bits(bias, width)) -
                         static_cast<uint32_t>(predicted) + kCorrectionBias;
    }
  }
}

void unpack_codes(const uint8_t* packed, int bits, uint64_t first, size_t count,
                  uint32_t* out) {
  const uint8_t* const p = packed + first / 8 * static_cast<unsigned>(bits);
  switch (bits) {
    case 2:
      return unpack<2>(p, count, out);
    case 3:
      return unpack<3>(p, count, out);
    case 4:
      return unpack<4>(p, count, out);
    case 5:
      return unpack<5>(p, count, out);
    case 6:
      return unpack<6>(p, count, out);
    default:
      return unpack<8>(p, count, out);
  }
}

void pack_codes(const uint8_t* codes, int bits, size_t count, uint8_t* packed) {
  for (size_t i = 0; i < count; i += 8, packed += bits) {
    uint64_t word = 0;
    for (size_t k = 0; k < 8; ++k) {
      word |= uint64_t{codes[i + k]} << (static_cast<size_t>(bits) * k);
    }
    __builtin_memcpy(packed, &word, static_cast<size_t>(bits));
  }
}

}  // namespace mlx_entropy
