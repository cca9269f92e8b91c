// Frequencies and look-up tables of the two rANS coders.
//
// rANS: J. Duda, "Asymmetric numeral systems", arXiv:1311.2540. The alias
// arrangement of slots follows F. Giesen, "Interleaved entropy coders",
// arXiv:1402.3392, and M. Vose's table construction.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace mlx_entropy {

// Frequencies that sum to 2^precision_bits and minimize the coded size of
// `counts`. A symbol with a count gets at least 1, one without gets 0; when
// two or more symbols have counts, each stays below the total. If none has,
// the first symbol gets everything.
std::vector<uint16_t> quantize_frequencies(std::span<const uint64_t> counts,
                                           int precision_bits);

// Bits that coding `counts` with `frequencies` takes; symbols of frequency 0
// are not counted.
double coded_bits(std::span<const uint64_t> counts,
                  std::span<const uint16_t> frequencies, int precision_bits);

// rans16 decoder: 256 slots in 16 buckets of 16. In bucket b, slots below
// divider[b] belong to entry b, the others to entry b + 16. Every table has at
// most 32 entries, which fits byte shuffles of all SIMD instruction sets.
//
//   slot = x & 255,  bucket = slot >> 4,  entry = bucket + 16 * (slot & 15 >=
//   divider[bucket]);  x' = frequency[entry] * (x >> 8)
//                           + ((slot + rank_shift[entry]) & 255)
//
// (slot + rank_shift) mod 256 is the rank of the slot among its symbol's
// slots, from 0 to frequency - 1.
struct alignas(64) AliasTable {
  std::array<uint8_t, 16> divider;
  std::array<uint8_t, 32> symbol;
  std::array<uint8_t, 32> frequency;
  std::array<uint8_t, 32> rank_shift;
  std::array<uint8_t, 16> symbol_frequency;

  // `frequencies`: at most 16, sum 256, each below 256.
  static AliasTable build(std::span<const uint16_t> frequencies);
};

// rans32 decoder: one entry for each of the 4096 slots:
// symbol << 24 | frequency << 12 | (slot - first slot of the symbol).
std::vector<uint32_t> build_slot_table(std::span<const uint16_t> frequencies);

}  // namespace mlx_entropy
