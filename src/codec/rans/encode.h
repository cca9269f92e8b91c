// rANS encoders: 64 interleaved lanes, one stream for all planes of a tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "format/layout.h"

namespace mlx_entropy {

// What the encoder needs of one coded plane's frequencies.
class EncoderTable {
 public:
  EncoderTable(std::span<const uint16_t> frequencies, Coder coder);

 private:
  friend class StreamEncoder;

  // Exact division of a state by the frequency: (x * reciprocal) >> 32 for
  // 16-bit states; 32-bit states divide in 64 bits.
  std::vector<uint32_t> frequency_;
  std::vector<uint64_t> reciprocal_;
  std::vector<uint32_t> first_slot_;   // rans32
  std::vector<uint8_t> slot_of_rank_;  // rans16: [symbol * 256 + rank]
};

// Codes one tile. Sections must be pushed last first, because rANS decodes
// in the reverse of the order it encodes.
class StreamEncoder {
 public:
  // `max_symbols`: upper bound of the symbols of all sections together.
  StreamEncoder(Coder coder, size_t max_symbols);

  // `symbols` holds steps * 64 symbols of frequency > 0.
  void push_section(const EncoderTable& table, const uint8_t* symbols,
                    size_t steps);

  // The 64 final states, lane 0 first, as the decoder starts with them.
  std::vector<uint8_t> states() const;
  std::span<const uint8_t> stream() const;

 private:
  void push16(const EncoderTable& table, const uint8_t* symbols, size_t steps);
  void push32(const EncoderTable& table, const uint8_t* symbols, size_t steps);

  Coder coder_;
  uint32_t state_[kLanes];
  std::unique_ptr<uint8_t[]> buffer_;
  uint8_t* end_;
  uint8_t* head_;  // the stream grows downwards from end_
};

}  // namespace mlx_entropy
