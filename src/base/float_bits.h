// float16 and bfloat16 as bit patterns, and an order-preserving integer view.
//
// Plain branch-free expressions, so that loops over them vectorize on every
// target; all roundings are to nearest, ties to even, as MLX rounds.
#pragma once

#include <bit>
#include <cstdint>

namespace mlx_entropy {

enum class FloatType : uint8_t { kNone = 0, kFloat32, kFloat16, kBfloat16 };

constexpr int bit_width(FloatType type) {
  return type == FloatType::kNone ? 0 : type == FloatType::kFloat32 ? 32 : 16;
}

inline float bfloat16_to_float(uint32_t bits) {
  return std::bit_cast<float>(bits << 16);
}

inline uint32_t float_to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return is_nan ? ((bits >> 16) | 0x40) : rounded;
}

// The exponent field moves from 5 to 8 bits by a multiplication with 2^112,
// which also normalizes subnormals; infinities and NaNs get a full exponent.
inline float float16_to_float(uint32_t bits) {
  const uint32_t magnitude = (bits & 0x7fff) << 13;
  const uint32_t scaled =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1.0p112f);
  const uint32_t special = magnitude | 0x7f800000;
  const uint32_t finite = (bits & 0x7c00) == 0x7c00 ? special : scaled;
  return std::bit_cast<float>(finite | ((bits & 0x8000) << 16));
}

inline uint32_t float_to_float16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Normal range: rebias the exponent and round off 13 mantissa bits.
  const uint32_t normal =
      (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14: adding 0.5 leaves the subnormal mantissa in the low bits.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
      0x3f000000;
  uint32_t result = magnitude < 0x38800000 ? subnormal : normal;
  result = magnitude >= 0x477ff000 ? 0x7c00 : result;
  const uint32_t nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  result = magnitude > 0x7f800000 ? nan : result;
  return result | sign;
}

inline float to_float(FloatType type, uint32_t bits) {
  switch (type) {
    case FloatType::kFloat16:
      return float16_to_float(bits);
    case FloatType::kBfloat16:
      return bfloat16_to_float(bits);
    default:
      return std::bit_cast<float>(bits);
  }
}

inline uint32_t from_float(FloatType type, float value) {
  switch (type) {
    case FloatType::kFloat16:
      return float_to_float16(value);
    case FloatType::kBfloat16:
      return float_to_bfloat16(value);
    default:
      return std::bit_cast<uint32_t>(value);
  }
}

// Sign-magnitude bits of `width` bits to an integer of the same order.
// -0 maps to -1 and +0 to 0, so the mapping is one to one.
inline int32_t ordered_from_bits(uint32_t bits, int width) {
  const uint32_t sign_bit = uint32_t{1} << (width - 1);
  const uint32_t magnitude = bits & (sign_bit - 1);
  return static_cast<int32_t>((bits & sign_bit) ? ~magnitude : magnitude);
}

inline uint32_t bits_from_ordered(int32_t ordered, int width) {
  const uint32_t sign_bit = uint32_t{1} << (width - 1);
  const uint32_t value = static_cast<uint32_t>(ordered);
  return ordered < 0 ? ((~value & (sign_bit - 1)) | sign_bit)
                     : (value & (sign_bit - 1));
}

// The sign moves to the lowest bit, so that the top bits are the exponent,
// whose distribution is narrow, and the sign costs one raw bit.
inline uint32_t sign_to_low_bit(uint32_t bits, int width) {
  const uint32_t mask = width == 32 ? ~uint32_t{0} : (uint32_t{1} << width) - 1;
  return ((bits << 1) | (bits >> (width - 1))) & mask;
}

inline uint32_t sign_to_high_bit(uint32_t value, int width) {
  return (value >> 1) | ((value & 1) << (width - 1));
}

}  // namespace mlx_entropy
