// The scalar target: the oracle's decoder, one float at a time. Runs anywhere.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>

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
  static Float mul(Float a, Float b) { return a * b; }
  static Float load_first(const float* p, size_t) { return *p; }

  using Int = int32_t;
  static constexpr bool kSplitActivations = false;
  static constexpr size_t kDepth = 2;
  static constexpr size_t kPairColumns = 0;
  static constexpr size_t kSingleColumns = 2;

  static Int int_zero() { return 0; }
  static Float to_float(Int a) { return static_cast<float>(a); }
  static Int shift_high(Int a) { return a * 256; }
  static Int load_panel(const uint8_t* p) {
    return mlx_entropy::load<int32_t>(p);
  }
  static Int broadcast(const uint8_t* x) {
    return mlx_entropy::load<int32_t>(x);
  }
  static Int dot(Int acc, Int codes, Int x) {
    return acc + (codes & 0xffff) * static_cast<int16_t>(x) +
           (codes >> 16) * (x >> 16);
  }

  static void pack(const uint8_t* codes, size_t cols, uint8_t* panel) {
    for (size_t k = 0; k < cols; ++k) {
      for (size_t r = 0; r < 16; ++r) {
        mlx_entropy::store(panel + (k / 2 * 16 + r) * 4 + k % 2 * 2,
                           uint16_t{codes[r * cols + k]});
      }
    }
  }

  template <size_t kGroup>
  static float dot_row(const uint8_t* codes, const uint8_t* x, size_t groups,
                       const float* scales) {
    float sum = 0;
    for (size_t g = 0; g < groups; ++g) {
      int32_t dots = 0;
      for (size_t k = g * kGroup; k < (g + 1) * kGroup; ++k) {
        dots += codes[k] * mlx_entropy::load<int16_t>(x + 2 * k);
      }
      sum += static_cast<float>(dots) * scales[g];
    }
    return sum;
  }

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

  static size_t count_ones(const uint8_t* bitmap, size_t count) {
    return body::count_ones(bitmap, count);
  }

  static void merge(const uint8_t* bitmap, size_t count, const uint8_t* left,
                    const uint8_t* right, uint8_t* out) {
    for (size_t i = 0; i < count; ++i) {
      const bool goes_right = bitmap[i / 8] >> (i % 8) & 1;
      out[i] = goes_right ? *right++ : *left++;
    }
  }

  template <int kDepth>
  static void unpack(const uint8_t* packed, size_t count, const uint8_t* table,
                     uint8_t* out) {
    for (size_t i = 0; i < count; ++i) {
      const size_t bit = i * kDepth;
      const uint32_t two = mlx_entropy::load<uint16_t>(packed + bit / 8);
      out[i] = table[two >> (bit % 8) & ((1u << kDepth) - 1)];
    }
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
                                        body::quantize_row<Scalar>,
                                        body::decode_tile<Scalar>,
                                        body::check_tile<Scalar>,
                                        &kScalarTransformer};
  return table;
}

}  // namespace mlx_entropy
