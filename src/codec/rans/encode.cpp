#include "codec/rans/encode.h"

#include "base/bits.h"
#include "codec/rans/model.h"

namespace mlx_entropy {
namespace {

// slot_of_rank[symbol * 256 + rank]: the inverse of the decoder's mapping.
std::vector<uint8_t> invert_alias_table(const AliasTable& table) {
  std::vector<uint8_t> slots(16 * 256, 0);
  for (size_t slot = 0; slot < 256; ++slot) {
    const size_t bucket = slot >> 4;
    const size_t entry =
        bucket + ((slot & 15) >= table.divider[bucket] ? 16 : 0);
    const size_t rank = (slot + table.rank_shift[entry]) & 255;
    slots[size_t{table.symbol[entry]} * 256 + rank] =
        static_cast<uint8_t>(slot);
  }
  return slots;
}

}  // namespace

EncoderTable::EncoderTable(std::span<const uint16_t> frequencies, Coder coder) {
  uint32_t first = 0;
  for (const uint16_t frequency : frequencies) {
    frequency_.push_back(frequency);
    first_slot_.push_back(first);
    // ceil(2^32 / f): exact for every dividend below 2^16.
    reciprocal_.push_back(
        frequency == 0 ? 0 : ((uint64_t{1} << 32) + frequency - 1) / frequency);
    first += frequency;
  }
  if (coder == Coder::kRans16) {
    slot_of_rank_ = invert_alias_table(AliasTable::build(frequencies));
  }
}

StreamEncoder::StreamEncoder(Coder coder, size_t max_symbols) : coder_(coder) {
  // At most one byte (rans16) or one 16-bit word (rans32) a symbol.
  const size_t bytes = max_symbols * (coder == Coder::kRans16 ? 1 : 2) + 8;
  buffer_ = std::make_unique_for_overwrite<uint8_t[]>(bytes);
  end_ = buffer_.get() + bytes;
  head_ = end_;
  for (uint32_t& state : state_) state = coder_limits(coder).initial_state;
}

void StreamEncoder::push_section(const EncoderTable& table,
                                 const uint8_t* symbols, size_t steps) {
  if (coder_ == Coder::kRans16) {
    push16(table, symbols, steps);
  } else {
    push32(table, symbols, steps);
  }
}

// A decoding step refills even lanes 0, 2, .. 62, then odd lanes 1, 3, .. 63
// (see docs/format.md), so encoding goes from lane 63 down the odd lanes and
// then down the even ones.
void StreamEncoder::push16(const EncoderTable& table, const uint8_t* symbols,
                           size_t steps) {
  const uint32_t* const frequency = table.frequency_.data();
  const uint64_t* const reciprocal = table.reciprocal_.data();
  const uint8_t* const slots = table.slot_of_rank_.data();
  uint8_t* head = head_;
  for (size_t step = steps; step-- > 0;) {
    const uint8_t* const row = symbols + step * kLanes;
    for (int parity = 1; parity >= 0; --parity) {
      for (int lane = 62 + parity; lane >= 0; lane -= 2) {
        const size_t symbol = row[lane];
        const uint32_t f = frequency[symbol];
        uint32_t x = state_[lane];
        // Branch-free, because whether a lane renormalizes is a coin toss.
        const bool renormalize = x >= (f << 8);
        head[-1] = static_cast<uint8_t>(x);
        head -= renormalize;
        x >>= renormalize ? 8 : 0;
        const auto quotient =
            static_cast<uint32_t>((x * reciprocal[symbol]) >> 32);
        const uint32_t rank = x - quotient * f;
        state_[lane] = (quotient << 8) + slots[symbol * 256 + rank];
      }
    }
  }
  head_ = head;
}

void StreamEncoder::push32(const EncoderTable& table, const uint8_t* symbols,
                           size_t steps) {
  constexpr int kBits = kRans32.precision_bits;
  uint8_t* head = head_;
  for (size_t step = steps; step-- > 0;) {
    const uint8_t* const row = symbols + step * kLanes;
    for (size_t lane = kLanes; lane-- > 0;) {
      const size_t symbol = row[lane];
      const uint32_t f = table.frequency_[symbol];
      uint32_t x = state_[lane];
      const bool renormalize = x >= (uint64_t{f} << (32 - kBits));
      store(head - 2, static_cast<uint16_t>(x));
      head -= renormalize ? 2 : 0;
      x >>= renormalize ? 16 : 0;
      state_[lane] = ((x / f) << kBits) + x % f + table.first_slot_[symbol];
    }
  }
  head_ = head;
}

std::vector<uint8_t> StreamEncoder::states() const {
  const size_t bytes = coder_limits(coder_).state_bytes;
  std::vector<uint8_t> out(kLanes * bytes);
  for (size_t lane = 0; lane < kLanes; ++lane) {
    std::memcpy(&out[lane * bytes], &state_[lane], bytes);
  }
  return out;
}

std::span<const uint8_t> StreamEncoder::stream() const {
  return {head_, static_cast<size_t>(end_ - head_)};
}

}  // namespace mlx_entropy
