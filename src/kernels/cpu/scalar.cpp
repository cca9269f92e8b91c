// The scalar target: the oracle's decoder, one float at a time. Runs anywhere.
#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/bits.h"
#include "base/float_bits.h"
#include "codec/rans/decode.h"
#include "kernels/kernels.h"

#include "kernels/body/decode.h"
#include "kernels/body/product.h"
#include "kernels/body/tile_reader.h"

namespace mlx_entropy {
namespace {

struct Scalar {
  using Float = float;
  static constexpr size_t kWidth = 1;
  static constexpr int kMaxStreams = 1;
  static constexpr size_t kPanelCols = 2;

  static constexpr size_t kTallCols = 4;

  static void transpose(const float* from, size_t stride, float* to) {
    for (size_t r = 0; r < 16; ++r) {
      for (size_t c = 0; c < 16; ++c) to[c * 16 + r] = from[r * stride + c];
    }
  }

  static Float zero() { return 0.0f; }
  static Float set(float a) { return a; }
  static Float load(const float* p) { return *p; }
  static void store(float* p, Float a) { *p = a; }
  static Float add(Float a, Float b) { return a + b; }
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
  static float sum(Float a) { return a; }
  static Float from_bytes(const uint8_t* p) { return *p; }

  static void spread_mask(uint64_t mask, uint8_t* bytes) {
    for (size_t i = 0; i < kLanes; ++i) bytes[i] = mask >> i & 1;
  }

  static void join_bits(const uint8_t* classes, const uint8_t* raw,
                        int raw_bits, uint8_t* out) {
    for (size_t i = 0; i < kLanes; ++i) {
      unsigned value = static_cast<unsigned>(classes[i]) << raw_bits;
      for (int bit = 0; bit < raw_bits; ++bit) {
        value |= (raw[8 * bit + static_cast<int>(i / 8)] >> (i % 8) & 1u)
                 << bit;
      }
      out[i] = static_cast<uint8_t>(value);
    }
  }

  static void look_up(const uint8_t* table, uint8_t* bytes) {
    for (size_t i = 0; i < kLanes; ++i) bytes[i] = table[bytes[i]];
  }

  template <int V>
  static void decode16(uint8_t (*states)[256], const uint8_t** streams,
                       const AliasTable& table, size_t steps,
                       uint8_t* const* out) {
    for (int v = 0; v < V; ++v) {
      uint16_t state[kLanes];
      __builtin_memcpy(state, states[v], sizeof state);
      for (size_t step = 0; step < steps; ++step) {
        streams[v] =
            decode_step16(state, streams[v], table, out[v] + step * kLanes);
      }
      __builtin_memcpy(states[v], state, sizeof state);
    }
  }

  template <int V>
  static void decode32(uint8_t (*states)[256], const uint8_t** streams,
                       const uint32_t* slots, size_t steps,
                       uint8_t* const* out) {
    for (int v = 0; v < V; ++v) {
      uint32_t state[kLanes];
      __builtin_memcpy(state, states[v], sizeof state);
      for (size_t step = 0; step < steps; ++step) {
        streams[v] =
            decode_step32(state, streams[v], slots, out[v] + step * kLanes);
      }
      __builtin_memcpy(states[v], state, sizeof state);
    }
  }
};

}  // namespace

const KernelTable& scalar_kernels() {
  static constexpr KernelTable table = {"scalar",
                                        Scalar::kMaxStreams,
                                        body::product<Scalar>,
                                        body::decode_tile<Scalar>,
                                        body::check_tile<Scalar>,
                                        &kScalarTransformer};
  return table;
}

}  // namespace mlx_entropy
