// Scalar rANS decoding: the definition that every SIMD decoder must match.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/rans/model.h"
#include "format/layout.h"

namespace mlx_entropy {

// Order in which the lanes of a rans16 step take their renormalization byte:
// even lanes first, because SIMD decoders keep even and odd lanes in separate
// registers of 16-bit elements.
constexpr size_t rans16_lane(size_t order) {
  return order < 32 ? 2 * order : 2 * (order - 32) + 1;
}

// Decodes one step of 64 symbols and returns the new stream position.
inline const uint8_t* decode_step16(uint16_t* state, const uint8_t* stream,
                                    const AliasTable& table, uint8_t* out) {
  for (size_t order = 0; order < kLanes; ++order) {
    const size_t lane = rans16_lane(order);
    uint32_t x = state[lane];
    const uint32_t slot = x & 255;
    const uint32_t bucket = slot >> 4;
    const uint32_t entry =
        bucket + ((slot & 15) >= table.divider[bucket] ? 16 : 0);
    out[lane] = table.symbol[entry];
    x = table.frequency[entry] * (x >> 8) +
        ((slot + table.rank_shift[entry]) & 255);
    if (x < kRans16.initial_state) x = (x << 8) | *stream++;
    state[lane] = static_cast<uint16_t>(x);
  }
  return stream;
}

inline const uint8_t* decode_step32(uint32_t* state, const uint8_t* stream,
                                    const uint32_t* slots, uint8_t* out) {
  for (size_t lane = 0; lane < kLanes; ++lane) {
    uint32_t x = state[lane];
    const uint32_t entry = slots[x & 4095];
    out[lane] = static_cast<uint8_t>(entry >> 24);
    x = ((entry >> 12) & 4095) * (x >> 12) + (entry & 4095);
    if (x < kRans32.initial_state) {
      uint16_t word;
      __builtin_memcpy(&word, stream, sizeof word);
      x = (x << 16) | word;
      stream += sizeof word;
    }
    state[lane] = x;
  }
  return stream;
}

}  // namespace mlx_entropy
