// MLX's affine quantization: w = scale * code + bias for each group.
//
// mx.quantize sets bias = edge and scale = edge / k with a small integer k, so
// the bias is round(scale * k) up to one unit in the last place. It is coded
// as k (plane "offsets") and the distance in representable values (plane
// "corrections"), which is exact for any bias.
#pragma once

#include <cstdint>
#include <vector>

#include "base/float_bits.h"
#include "quant/plane_source.h"

namespace mlx_entropy {

struct AffineArrays {
  uint32_t rows = 0;
  uint32_t cols = 0;
  int bits = 0;
  uint32_t group_size = 0;
  FloatType float_type = FloatType::kNone;
  const uint32_t* codes = nullptr;  // rows x cols * bits / 32, packed
  const void* scales = nullptr;     // rows x cols / group_size
  const void* biases = nullptr;     // likewise
};

// How biases are stored: predicted from the scale, or whole.
enum class BiasMode { kPredicted, kStored };

class AffineSource : public PlaneSource {
 public:
  AffineSource(const AffineArrays& arrays, BiasMode mode);

  MatrixHeader describe() const override;
  void read(size_t plane, uint64_t first, size_t count,
            uint32_t* out) const override;

 private:
  AffineArrays arrays_;
  BiasMode mode_;
  std::vector<int16_t> offsets_;  // of each group, with predicted biases
};

// k of the prediction above, or 0 where no k comes near the bias.
int32_t bias_offset(FloatType type, uint32_t scale, uint32_t bias);
// Bit pattern of round(scale * offset); +0 for offset 0.
uint32_t predicted_bias(FloatType type, uint32_t scale, int32_t offset);

// Codes of `bits` bits, lowest bits first, eight of them in `bits` bytes.
// `first` and `count` are multiples of 8.
void unpack_codes(const uint8_t* packed, int bits, uint64_t first, size_t count,
                  uint32_t* out);
void pack_codes(const uint8_t* codes, int bits, size_t count, uint8_t* packed);

}  // namespace mlx_entropy
