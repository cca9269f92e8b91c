// SHA-256 (FIPS 180-4), because that is what the manifest of the test vectors
// has.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>

#include "support/bytes.h"

namespace mlx_entropy::testing {

// The first 32 bits of the fractional part of a root of the nth prime.
inline uint32_t prime_root_bits(size_t n, bool cube) {
  uint32_t prime = 1;
  for (size_t found = 0; found <= n;) {
    ++prime;
    bool is_prime = true;
    for (uint32_t d = 2; d * d <= prime; ++d) is_prime &= prime % d != 0;
    found += is_prime ? 1 : 0;
  }
  // Exact to the last bit: the root of an integer, scaled by 2^32.
  const auto power = [cube](unsigned __int128 r) {
    return cube ? r * r * r : r * r;
  };
  const int scale = cube ? 96 : 64;
  const auto target = static_cast<unsigned __int128>(prime) << scale;
  uint64_t root = 0;
  for (int bit = 36; bit >= 0; --bit) {
    const uint64_t next = root | uint64_t{1} << bit;
    if (power(next) <= target) root = next;
  }
  return static_cast<uint32_t>(root);
}

inline std::string sha256(Bytes message) {
  std::array<uint32_t, 64> round{};
  std::array<uint32_t, 8> hash{};
  for (size_t i = 0; i < 64; ++i) round[i] = prime_root_bits(i, true);
  for (size_t i = 0; i < 8; ++i) hash[i] = prime_root_bits(i, false);

  const uint64_t bits = uint64_t{message.size()} * 8;
  message.push_back(0x80);
  while (message.size() % 64 != 56) message.push_back(0);
  for (int shift = 56; shift >= 0; shift -= 8) {
    message.push_back(static_cast<uint8_t>(bits >> shift));
  }
  for (size_t block = 0; block < message.size(); block += 64) {
    std::array<uint32_t, 64> w{};
    for (size_t i = 0; i < 64; ++i) {
      w[i / 4] = i / 4 < 16 ? w[i / 4] << 8 | message[block + i] : 0;
    }
    for (size_t i = 16; i < 64; ++i) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + w[i - 7] +
             (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) +
             (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
    }
    auto v = hash;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
      const uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
      const uint32_t t1 =
          v[7] +
          (std::rotr(v[4], 6) ^ std::rotr(v[4], 11) ^ std::rotr(v[4], 25)) +
          choice + round[i] + w[i];
      const uint32_t t2 =
          (std::rotr(v[0], 2) ^ std::rotr(v[0], 13) ^ std::rotr(v[0], 22)) +
          majority;
      v = {t1 + t2, v[0], v[1], v[2], v[3] + t1, v[4], v[5], v[6]};
    }
    for (size_t i = 0; i < 8; ++i) hash[i] += v[i];
  }
  std::string hex;
  for (const uint32_t word : hash) {
    for (int shift = 28; shift >= 0; shift -= 4) {
      hex += "0123456789abcdef"[word >> shift & 15];
    }
  }
  return hex;
}

}  // namespace mlx_entropy::testing
