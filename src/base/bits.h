// Bit-level helpers shared by the format, the codec and the kernels.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace mlx_entropy {

static_assert(std::endian::native == std::endian::little,
              "the format is little-endian and is read in place");

template <class T>
inline T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <class T>
inline void store(uint8_t* p, T value) {
  std::memcpy(p, &value, sizeof value);
}

constexpr uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

// a * b, or no value when it does not fit 64 bits.
inline bool checked_multiply(uint64_t a, uint64_t b, uint64_t* product) {
  return !__builtin_mul_overflow(a, b, product);
}

}  // namespace mlx_entropy
