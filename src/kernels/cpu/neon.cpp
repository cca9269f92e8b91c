// NEON, which every AArch64 CPU has: 64 rans16 lanes in eight registers of
// 16-bit states.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "base/bits.h"
#include "base/float_bits.h"
#include "codec/rans/decode.h"
#include "kernels/cpu/merge_orders.h"
#include "kernels/kernels.h"

#include "kernels/body/decode.h"
#include "kernels/body/product.h"
#include "kernels/body/tile_reader.h"

namespace mlx_entropy {
namespace {

// Row m renormalizes 8 states, table bytes 0 to 15, with bytes of the stream,
// table bytes from 16 on: a lane whose bit is set in m moves its low byte up
// and takes the next byte of the stream, another one stays.
constexpr auto make_refills() {
  std::array<std::array<uint8_t, 16>, 256> rows{};
  for (size_t mask = 0; mask < 256; ++mask) {
    uint8_t next = 16;
    for (size_t i = 0; i < 8; ++i) {
      const auto low = static_cast<uint8_t>(2 * i);
      const bool refill = (mask >> i & 1) != 0;
      rows[mask][2 * i] = refill ? next++ : low;
      rows[mask][2 * i + 1] = refill ? low : static_cast<uint8_t>(low + 1);
    }
  }
  return rows;
}

alignas(64) constexpr auto kRefills = make_refills();

// For unpacking fields of `depth` bits: the two bytes that field i starts in,
// and how far it has to move down.
struct UnpackRows {
  alignas(16) uint8_t order[32];
  alignas(16) int16_t shift[16];
};

constexpr auto make_unpack_rows() {
  std::array<UnpackRows, 7> rows{};
  for (int depth = 1; depth <= 7; ++depth) {
    UnpackRows& row = rows[static_cast<size_t>(depth - 1)];
    for (int i = 0; i < 16; ++i) {
      const int bit = i * depth;
      row.order[2 * i] = static_cast<uint8_t>(bit / 8);
      row.order[2 * i + 1] = static_cast<uint8_t>(bit / 8 + 1);
      row.shift[i] = static_cast<int16_t>(-(bit % 8));
    }
  }
  return rows;
}

constexpr auto kUnpackRows = make_unpack_rows();

// Bit i % 8 in byte i.
uint8x16_t bit_of_byte() {
  return vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
}

// Alias tables in registers; see AliasTable.
struct Tables16 {
  explicit Tables16(const AliasTable& table)
      : divider(vld1q_u8(table.divider.data())),
        symbol(vld1q_u8_x2(table.symbol.data())),
        frequency(vld1q_u8_x2(table.frequency.data())),
        rank_shift(vld1q_u8_x2(table.rank_shift.data())) {}

  uint8x16_t divider;
  uint8x16x2_t symbol, frequency, rank_shift;
};

// States in the order in which they take bytes of the stream: registers 0 to
// 3 the even lanes, 4 to 7 the odd ones.
using Lanes16 = uint16x8_t[8];

// Symbols of 16 lanes; the states advance but are not refilled.
inline uint8x16_t advance16(uint16x8_t* x, const Tables16& t) {
  const uint8x16_t a = vreinterpretq_u8_u16(x[0]);
  const uint8x16_t b = vreinterpretq_u8_u16(x[1]);
  const uint8x16_t slot = vuzp1q_u8(a, b);
  const uint8x16_t high = vuzp2q_u8(a, b);
  const uint8x16_t bucket = vshrq_n_u8(slot, 4);
  const uint8x16_t aliased =
      vcgeq_u8(vandq_u8(slot, vdupq_n_u8(15)), vqtbl1q_u8(t.divider, bucket));
  const uint8x16_t entry = vorrq_u8(bucket, vandq_u8(aliased, vdupq_n_u8(16)));
  const uint8x16_t frequency = vqtbl2q_u8(t.frequency, entry);
  const uint8x16_t rank = vaddq_u8(slot, vqtbl2q_u8(t.rank_shift, entry));
  x[0] = vaddw_u8(vmull_u8(vget_low_u8(frequency), vget_low_u8(high)),
                  vget_low_u8(rank));
  x[1] = vaddw_high_u8(vmull_high_u8(frequency, high), rank);
  return vqtbl2q_u8(t.symbol, entry);
}

// Bytes of all ones where a state of two registers is below 256.
inline uint8x16_t below_256(uint16x8_t a, uint16x8_t b) {
  const uint8x16_t high =
      vuzp2q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b));
  return vceqzq_u8(high);
}

// Shifts a byte of the stream into each lane below 256.
inline void refill16(uint16x8_t* x, const uint8_t** stream) {
  const uint8x16_t bit = bit_of_byte();
  uint8x16_t low[4];
  for (int i = 0; i < 4; ++i) {
    low[i] = vandq_u8(below_256(x[2 * i], x[2 * i + 1]), bit);
  }
  // Adding neighbours three times makes a byte of each 8, a mask of lanes.
  const uint8x16_t sums =
      vpaddq_u8(vpaddq_u8(low[0], low[1]), vpaddq_u8(low[2], low[3]));
  const uint8x8_t masks = vget_low_u8(vpaddq_u8(sums, sums));
  const uint64_t mask = vget_lane_u64(vreinterpret_u64_u8(masks), 0);
  // Byte i: how many bytes registers 0 to i take.
  const uint64_t taken = vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(masks)), 0) *
                         0x0101010101010101;
  size_t begin = 0;
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const uint8x16x2_t bytes = {
        {vreinterpretq_u8_u16(x[i]),
         vcombine_u8(vld1_u8(*stream + begin), vdup_n_u8(0))}};
    const uint8x16_t row = vld1q_u8(kRefills[mask >> 8 * i & 255].data());
    x[i] = vreinterpretq_u16_u8(vqtbl2q_u8(bytes, row));
    begin = taken >> 8 * i & 255;
  }
  *stream += begin;
}

// Symbols of 64 lanes in lane order.
inline void step16(uint16x8_t* x, const uint8_t** stream, const Tables16& t,
                   uint8_t* out) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const uint8x16_t even = advance16(x + 2 * half, t);
    const uint8x16_t odd = advance16(x + 4 + 2 * half, t);
    vst1q_u8(out + 32 * half, vzip1q_u8(even, odd));
    vst1q_u8(out + 32 * half + 16, vzip2q_u8(even, odd));
  }
  refill16(x, stream);
}

inline void load_lanes(const uint8_t* states, uint16x8_t* x) {
  const auto* const words = reinterpret_cast<const uint16_t*>(states);
  for (int i = 0; i < 4; ++i) {
    const uint16x8x2_t pair = vld2q_u16(words + 16 * i);
    x[i] = pair.val[0];
    x[4 + i] = pair.val[1];
  }
}

inline void store_lanes(const uint16x8_t* x, uint8_t* states) {
  auto* const words = reinterpret_cast<uint16_t*>(states);
  for (int i = 0; i < 4; ++i) {
    vst2q_u16(words + 16 * i, uint16x8x2_t{{x[i], x[4 + i]}});
  }
}

struct Neon {
  using Float = float32x4_t;
  static constexpr size_t kWidth = 4;
  // Eight registers of states each; the second stream is worth the spills.
  static constexpr int kMaxStreams = 2;
  static constexpr size_t kPanelCols = 4;
  static constexpr size_t kTallCols = 6;

  // to[c * 16 + r] = from[r * stride + c], 16 x 16, in 16 parts.
  static void transpose(const float* from, size_t stride, float* to) {
    for (size_t r = 0; r < 16; r += 4) {
      for (size_t c = 0; c < 16; c += 4) {
        transpose4(from + r * stride + c, stride, to + c * 16 + r);
      }
    }
  }

  static void transpose4(const float* from, size_t stride, float* to) {
    const Float a = load(from), b = load(from + stride);
    const Float c = load(from + 2 * stride), d = load(from + 3 * stride);
    const auto pairs = [](Float v) { return vreinterpretq_f64_f32(v); };
    const float64x2_t even_ab = pairs(vtrn1q_f32(a, b));
    const float64x2_t odd_ab = pairs(vtrn2q_f32(a, b));
    const float64x2_t even_cd = pairs(vtrn1q_f32(c, d));
    const float64x2_t odd_cd = pairs(vtrn2q_f32(c, d));
    const auto put = [](float* at, float64x2_t v) {
      vst1q_f32(at, vreinterpretq_f32_f64(v));
    };
    put(to, vtrn1q_f64(even_ab, even_cd));
    put(to + 16, vtrn1q_f64(odd_ab, odd_cd));
    put(to + 32, vtrn2q_f64(even_ab, even_cd));
    put(to + 48, vtrn2q_f64(odd_ab, odd_cd));
  }

  static Float zero() { return vdupq_n_f32(0.0f); }
  static Float set(float a) { return vdupq_n_f32(a); }
  static Float load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Float a) { vst1q_f32(p, a); }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static float sum(Float a) { return vaddvq_f32(a); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float load_first(const float* p, size_t n) {
    float values[4] = {};
    __builtin_memcpy(values, p, (n < 4 ? n : 4) * sizeof(float));
    return vld1q_f32(values);
  }

  // 16-bit codes times 16-bit integers. A vector of a panel holds one code of
  // each of four rows, then the next code of each.
  using Int = int32x4_t;
  static constexpr bool kSplitActivations = false;
  static constexpr size_t kDepth = 2;
  static constexpr size_t kPairColumns = 0;
  static constexpr size_t kSingleColumns = 4;

  static Int int_zero() { return vdupq_n_s32(0); }
  static Float to_float(Int a) { return vcvtq_f32_s32(a); }
  static Int shift_high(Int a) { return vshlq_n_s32(a, 8); }
  static Int load_panel(const uint8_t* p) {
    return vreinterpretq_s32_u8(vld1q_u8(p));
  }
  static Int broadcast(const uint8_t* x) {
    return vdupq_n_s32(mlx_entropy::load<int32_t>(x));
  }
  static Int dot(Int acc, Int codes, Int x) {
    const int16x8_t c = vreinterpretq_s16_s32(codes);
    const int16x4_t pair = vget_low_s16(vreinterpretq_s16_s32(x));
    acc = vmlal_lane_s16(acc, vget_low_s16(c), pair, 0);
    return vmlal_high_lane_s16(acc, c, pair, 1);
  }

  static void pack(const uint8_t* codes, size_t cols, uint8_t* panel) {
    for (size_t k = 0; k < cols; k += 16) {
      for (size_t r = 0; r < 16; r += 4) {
        const uint8_t* const from = codes + r * cols + k;
        const uint8x16_t a = vld1q_u8(from), b = vld1q_u8(from + cols);
        const uint8x16_t c = vld1q_u8(from + 2 * cols);
        const uint8x16_t d = vld1q_u8(from + 3 * cols);
        const uint8x16_t ac[2] = {vzip1q_u8(a, c), vzip2q_u8(a, c)};
        const uint8x16_t bd[2] = {vzip1q_u8(b, d), vzip2q_u8(b, d)};
        uint8_t* to = panel + k / 2 * 64 + r * 4;
        const auto put_two = [&to](uint8x16_t abcd) {
          vst1q_u8(to, vreinterpretq_u8_u16(vmovl_u8(vget_low_u8(abcd))));
          vst1q_u8(to + 64, vreinterpretq_u8_u16(vmovl_high_u8(abcd)));
          to += 128;
        };
        for (int half = 0; half < 2; ++half) {
          put_two(vzip1q_u8(ac[half], bd[half]));
          put_two(vzip2q_u8(ac[half], bd[half]));
        }
      }
    }
  }

  // Adds 16 codes times 16 integers.
  static int32x4_t dot16(int32x4_t acc, const uint8_t* codes,
                         const uint8_t* x) {
    const uint8x16_t c = vld1q_u8(codes);
    const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(c)));
    const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(c));
    const int16x8_t x0 = vreinterpretq_s16_u8(vld1q_u8(x));
    const int16x8_t x1 = vreinterpretq_s16_u8(vld1q_u8(x + 16));
    acc = vmlal_s16(acc, vget_low_s16(low), vget_low_s16(x0));
    acc = vmlal_high_s16(acc, low, x0);
    acc = vmlal_s16(acc, vget_low_s16(high), vget_low_s16(x1));
    return vmlal_high_s16(acc, high, x1);
  }

  template <size_t kGroup>
  static float dot_row(const uint8_t* codes, const uint8_t* x, size_t groups,
                       const float* scales) {
    Float sum = zero();
    for (size_t g = 0; g < groups; ++g) {
      int32x4_t dots[2] = {int_zero(), int_zero()};
#pragma GCC unroll 8
      for (size_t k = 0; k < kGroup; k += 16) {
        const size_t at = g * kGroup + k;
        dots[k / 16 % 2] = dot16(dots[k / 16 % 2], codes + at, x + 2 * at);
      }
      sum = vfmaq_n_f32(sum, vcvtq_f32_s32(vaddq_s32(dots[0], dots[1])),
                        scales[g]);
    }
    return Neon::sum(sum);
  }

  // Bytes that are all ones where the 16 bits from `bit` on of the mask are
  // set.
  static uint8x16_t spread16(uint64_t mask, int bit) {
    const uint8x16_t bytes =
        vcombine_u8(vdup_n_u8(static_cast<uint8_t>(mask >> bit)),
                    vdup_n_u8(static_cast<uint8_t>(mask >> (bit + 8))));
    return vtstq_u8(bytes, bit_of_byte());
  }

  static void spread_mask(uint64_t mask, uint8_t* bytes) {
    for (int i = 0; i < 64; i += 16) {
      vst1q_u8(bytes + i, vandq_u8(spread16(mask, i), vdupq_n_u8(1)));
    }
  }

  static void join_bits(const uint8_t* classes, const uint8_t* raw,
                        int raw_bits, uint8_t* out) {
    const int8x16_t shift = vdupq_n_s8(static_cast<int8_t>(raw_bits));
    for (int i = 0; i < 64; i += 16) {
      uint8x16_t value = vshlq_u8(vld1q_u8(classes + i), shift);
      for (int bit = 0; bit < raw_bits; ++bit) {
        const auto mask = mlx_entropy::load<uint64_t>(raw + 8 * bit);
        value = vorrq_u8(value,
                         vandq_u8(spread16(mask, i),
                                  vdupq_n_u8(static_cast<uint8_t>(1 << bit))));
      }
      vst1q_u8(out + i, value);
    }
  }

  // Quarters of the table; an index outside of one leaves what another found.
  static void look_up(const uint8_t* table, uint8_t* bytes) {
    uint8x16_t index[4], found[4];
    for (int i = 0; i < 4; ++i) {
      index[i] = vld1q_u8(bytes + 16 * i);
      found[i] = vdupq_n_u8(0);
    }
    for (int quarter = 0; quarter < 4; ++quarter) {
      const uint8x16x4_t entries = vld1q_u8_x4(table + 64 * quarter);
      for (int i = 0; i < 4; ++i) {
        found[i] = vqtbx4q_u8(found[i], entries, index[i]);
        index[i] = vsubq_u8(index[i], vdupq_n_u8(64));
      }
    }
    for (int i = 0; i < 4; ++i) vst1q_u8(bytes + 16 * i, found[i]);
  }

  static size_t count_ones(const uint8_t* bitmap, size_t count) {
    uint32x4_t sum = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 128 <= count; i += 128) {
      sum = vpadalq_u16(sum, vpaddlq_u8(vcntq_u8(vld1q_u8(bitmap + i / 8))));
    }
    return vaddvq_u32(sum) + body::count_ones(bitmap + i / 8, count - i);
  }

  static void merge(const uint8_t* bitmap, size_t count, const uint8_t* left,
                    const uint8_t* right, uint8_t* out) {
    for (size_t i = 0; i < count; i += 64) {
      const auto mask = mlx_entropy::load<uint64_t>(bitmap + i / 8);
      // Byte k: how many values bytes 0 to k of the mask take from the right.
      const uint64_t taken =
          vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(mask))), 0) *
          0x0101010101010101;
      size_t from_right = 0;
#pragma GCC unroll 8
      for (size_t k = 0; k < 8; ++k) {
        const uint8x16_t both = vcombine_u8(vld1_u8(left + 8 * k - from_right),
                                            vld1_u8(right + from_right));
        const uint8x8_t order =
            vld1_u8(kMergeOrders[mask >> 8 * k & 255].data());
        vst1_u8(out + i + 8 * k, vqtbl1_u8(both, order));
        from_right = taken >> 8 * k & 255;
      }
      right += from_right;
      left += 64 - from_right;
    }
  }

  // 16 indices of kDepth bits: each is in two bytes next to each other.
  template <int kDepth>
  static uint8x16_t indices(const uint8_t* packed) {
    const uint8x16_t bytes = vld1q_u8(packed);
    if constexpr (kDepth == 8) return bytes;
    constexpr const UnpackRows& rows = kUnpackRows[kDepth - 1];
    const auto eight = [&](int half) {
      const uint16x8_t words = vreinterpretq_u16_u8(
          vqtbl1q_u8(bytes, vld1q_u8(rows.order + 16 * half)));
      return vreinterpretq_u8_u16(
          vshlq_u16(words, vld1q_s16(rows.shift + 8 * half)));
    };
    return vandq_u8(vuzp1q_u8(eight(0), eight(1)),
                    vdupq_n_u8((1 << kDepth) - 1));
  }

  template <int kDepth>
  static void unpack(const uint8_t* packed, size_t count, const uint8_t* table,
                     uint8_t* out) {
    if (table == nullptr) {  // the identity
      for (size_t i = 0; i < count; i += 16, packed += 2 * kDepth) {
        vst1q_u8(out + i, indices<kDepth>(packed));
      }
      return;
    }
    constexpr int kQuarters = kDepth <= 6 ? 1 : kDepth == 7 ? 2 : 4;
    uint8x16x4_t entries[kQuarters];
    for (int i = 0; i < kQuarters; ++i) {
      entries[i] = vld1q_u8_x4(table + 64 * i);
    }
    for (size_t i = 0; i < count; i += 16, packed += 2 * kDepth) {
      uint8x16_t index = indices<kDepth>(packed);
      if constexpr (kDepth <= 4) {
        vst1q_u8(out + i, vqtbl1q_u8(entries[0].val[0], index));
      } else {
        uint8x16_t found = vqtbl4q_u8(entries[0], index);
        for (int quarter = 1; quarter < kQuarters; ++quarter) {
          index = vsubq_u8(index, vdupq_n_u8(64));
          found = vqtbx4q_u8(found, entries[quarter], index);
        }
        vst1q_u8(out + i, found);
      }
    }
  }

  template <int V>
  static void decode16(uint8_t (*states)[256], const uint8_t** streams,
                       const AliasTable& table, size_t steps,
                       uint8_t* const* out) {
    const Tables16 tables(table);
    Lanes16 x[V];
    const uint8_t* p[V];
    for (int v = 0; v < V; ++v) {
      load_lanes(states[v], x[v]);
      p[v] = streams[v];
    }
    for (size_t step = 0; step < steps; ++step) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        step16(x[v], &p[v], tables, out[v] + step * kLanes);
      }
    }
    for (int v = 0; v < V; ++v) {
      store_lanes(x[v], states[v]);
      streams[v] = p[v];
    }
  }

  // There are no gathers: lanes one after the other.
  template <int V>
  static void decode32(uint8_t (*states)[256], const uint8_t** streams,
                       const uint32_t* slots, size_t steps,
                       uint8_t* const* out) {
    for (int v = 0; v < V; ++v) {
      auto* const state = reinterpret_cast<uint32_t*>(states[v]);
      for (size_t step = 0; step < steps; ++step) {
        streams[v] =
            decode_step32(state, streams[v], slots, out[v] + step * kLanes);
      }
    }
  }
};

const KernelTable kTable = {"neon",
                            Neon::kMaxStreams,
                            body::product<Neon>,
                            body::quantize_row<Neon>,
                            body::decode_tile<Neon>,
                            body::check_tile<Neon>,
                            &kNeonTransformer};

}  // namespace

const KernelTable& neon_kernels() { return kTable; }

}  // namespace mlx_entropy

#endif  // __aarch64__
