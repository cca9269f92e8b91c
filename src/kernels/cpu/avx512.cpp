// AVX-512 with VBMI2: 64 rans16 lanes in two registers of 16-bit states.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "base/bits.h"
#include "base/float_bits.h"
#include "base/target_region.h"
#include "kernels/kernels.h"

namespace mlx_entropy {
namespace {

// For unpacking leaves of depth d: eight values come into each 64-bit element,
// from the bytes that start at d * its number, and d bits apart.
using ByteRows = std::array<std::array<uint8_t, 64>, kMaxLeafDepth>;

constexpr ByteRows make_unpack_orders() {
  ByteRows rows{};
  for (size_t d = 1; d <= rows.size(); ++d) {
    for (size_t i = 0; i < 64; ++i) {
      rows[d - 1][i] = static_cast<uint8_t>(i / 8 * d + i % 8);
    }
  }
  return rows;
}

constexpr ByteRows make_unpack_shifts() {
  ByteRows rows{};
  for (size_t d = 1; d <= rows.size(); ++d) {
    for (size_t i = 0; i < 64; ++i) {
      rows[d - 1][i] = static_cast<uint8_t>(i % 8 * d);
    }
  }
  return rows;
}

alignas(64) constexpr ByteRows kUnpackOrders = make_unpack_orders();
alignas(64) constexpr ByteRows kUnpackShifts = make_unpack_shifts();

}  // namespace
}  // namespace mlx_entropy

MLX_ENTROPY_BEGIN_TARGET(
    "avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,"
    "avx512vbmi,avx512vbmi2,avx512vnni,avx512vpopcntdq")

#include "kernels/body/decode.h"
#include "kernels/body/product.h"
#include "kernels/body/tile_reader.h"
#include "kernels/cpu/avx512_vectors.h"

namespace mlx_entropy {
namespace {

__m512i broadcast16(const uint8_t* table) {
  return _mm512_broadcast_i32x4(
      _mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}

__m512i broadcast32(const uint8_t* table) {
  return _mm512_broadcast_i64x4(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)));
}

// Alias tables in registers; see AliasTable.
struct Tables16 {
  explicit Tables16(const AliasTable& table)
      : divider(broadcast16(table.divider.data())),
        symbol(broadcast32(table.symbol.data())),
        frequency(broadcast32(table.frequency.data())),
        rank_shift(broadcast32(table.rank_shift.data())) {}

  __m512i divider, symbol, frequency, rank_shift;
};

// States of the even lanes and of the odd lanes, 16 bits each.
struct Lanes16 {
  __m512i even, odd;
};

// Shifts a byte of the stream into each lane below 256, in lane order. Bytes
// are widened before they are expanded, which takes the widening out of the
// chain from one step to the next.
inline __m512i refill16(__m512i x, const uint8_t** stream) {
  const __m512i bytes = _mm512_cvtepu8_epi16(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(*stream)));
  const __mmask32 low = _mm512_cmplt_epu16_mask(x, _mm512_set1_epi16(256));
  *stream += _mm_popcnt_u32(low);
  return _mm512_or_si512(_mm512_mask_slli_epi16(x, low, x, 8),
                         _mm512_maskz_expand_epi16(low, bytes));
}

// One step: returns 64 symbols in lane order.
inline __m512i step16(Lanes16* x, const uint8_t** stream, const Tables16& t) {
  const __m512i low_byte = _mm512_set1_epi16(0xff);
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512i slot = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, x->even,
                                              _mm512_slli_epi16(x->odd, 8));
  const __m512i bucket = _mm512_and_si512(_mm512_srli_epi16(slot, 4), nibble);
  const __mmask64 aliased = _mm512_cmpge_epu8_mask(
      _mm512_and_si512(slot, nibble), _mm512_shuffle_epi8(t.divider, bucket));
  const __m512i entry =
      _mm512_mask_add_epi8(bucket, aliased, bucket, _mm512_set1_epi8(16));
  const __m512i frequency = _mm512_permutexvar_epi8(entry, t.frequency);
  const __m512i rank =
      _mm512_add_epi8(slot, _mm512_permutexvar_epi8(entry, t.rank_shift));
  x->even =
      _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(frequency, low_byte),
                                          _mm512_srli_epi16(x->even, 8)),
                       _mm512_and_si512(rank, low_byte));
  x->odd = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(frequency, 8),
                                               _mm512_srli_epi16(x->odd, 8)),
                            _mm512_srli_epi16(rank, 8));
  x->even = refill16(x->even, stream);
  x->odd = refill16(x->odd, stream);
  return _mm512_permutexvar_epi8(entry, t.symbol);
}

// Element numbers 2i + parity of two registers, and back.
inline __m512i every_other(int parity) {
  alignas(64) uint16_t index[32];
  for (int i = 0; i < 32; ++i) {
    index[i] = static_cast<uint16_t>(2 * i + parity);
  }
  return _mm512_load_si512(index);
}

inline __m512i interleave(int half) {
  alignas(64) uint16_t index[32];
  for (int i = 0; i < 32; ++i) {
    index[i] = static_cast<uint16_t>(16 * half + i / 2 + (i % 2) * 32);
  }
  return _mm512_load_si512(index);
}

inline Lanes16 load_lanes(const uint8_t* states) {
  const __m512i a = _mm512_load_si512(states);
  const __m512i b = _mm512_load_si512(states + 64);
  return {_mm512_permutex2var_epi16(a, every_other(0), b),
          _mm512_permutex2var_epi16(a, every_other(1), b)};
}

inline void store_lanes(const Lanes16& x, uint8_t* states) {
  _mm512_store_si512(states,
                     _mm512_permutex2var_epi16(x.even, interleave(0), x.odd));
  _mm512_store_si512(states + 64,
                     _mm512_permutex2var_epi16(x.even, interleave(1), x.odd));
}

// One step of 16 rans32 lanes.
inline __m512i step32(__m512i x, const uint8_t** stream, const uint32_t* slots,
                      __m128i* symbols) {
  const __m512i field = _mm512_set1_epi32(4095);
  const __m512i entry =
      _mm512_i32gather_epi32(_mm512_and_si512(x, field), slots, 4);
  *symbols = _mm512_cvtepi32_epi8(_mm512_srli_epi32(entry, 24));
  x = _mm512_add_epi32(
      _mm512_mullo_epi32(_mm512_and_si512(_mm512_srli_epi32(entry, 12), field),
                         _mm512_srli_epi32(x, 12)),
      _mm512_and_si512(entry, field));
  const __mmask16 low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(1 << 16));
  const __m256i words = _mm256_maskz_expand_epi16(
      low, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(*stream)));
  *stream += 2 * _mm_popcnt_u32(low);
  return _mm512_or_si512(_mm512_mask_slli_epi32(x, low, x, 16),
                         _mm512_cvtepu16_epi32(words));
}

}  // namespace
}  // namespace mlx_entropy

#include "kernels/cpu/avx512_streams.h"

namespace mlx_entropy {
namespace {

struct Avx512 : Avx512Vectors, Avx512Streams {
  static constexpr int kMaxStreams = 8;

  static constexpr bool kSplitActivations = true;
  static constexpr size_t kDepth = 4;

  static Int dot(Int acc, Int codes, Int x) {
    // As an intrinsic GCC 12 copies the sums to other registers and back, two
    // moves for each product.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(x));
    return acc;
  }

  static void pack(const uint8_t* codes, size_t cols, uint8_t* panel) {
    // Four codes move as one 32-bit element.
    for (size_t k = 0; k < cols; k += 64) {
      transpose(reinterpret_cast<const float*>(codes + k), cols / 4,
                reinterpret_cast<float*>(panel + k * 16));
    }
  }

  // 64 codes times 64 integers, in 16 lanes of 4 neighbouring codes.
  static __m512i dot64(const uint8_t* codes, const uint8_t* x, size_t half) {
    const __m512i c = _mm512_loadu_si512(codes);
    const __m512i high =
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), c, _mm512_loadu_si512(x));
    return _mm512_dpbusd_epi32(_mm512_slli_epi32(high, 8), c,
                               _mm512_loadu_si512(x + half));
  }

  // The groups in one vector of codes, or the vectors of one group.
  template <size_t kGroup>
  static __m512 add_groups(const uint8_t* codes, const uint8_t* x, size_t half,
                           const float* scales, __m512 sum) {
    __m512i dots = dot64(codes, x, half);
    if constexpr (kGroup == 128) {
      dots = _mm512_add_epi32(dots, dot64(codes + 64, x + 64, half));
    }
    __m512 scale = _mm512_set1_ps(scales[0]);
    if constexpr (kGroup == 32) {
      scale =
          _mm512_mask_broadcastss_ps(scale, 0xff00, _mm_load_ss(scales + 1));
    }
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, sum);
  }

  template <size_t kGroup>
  static float dot_row(const uint8_t* codes, const uint8_t* x, size_t groups,
                       const float* scales) {
    constexpr size_t kStep = kGroup < 64 ? 64 : kGroup;
    const size_t half = Activations::half_bytes(groups * kGroup);
    const size_t steps = (groups * kGroup + kStep - 1) / kStep;
    const auto add = [&](size_t i, __m512 sum) {
      return add_groups<kGroup>(codes + i * kStep, x + i * kStep, half,
                                scales + i * (kStep / kGroup), sum);
    };
    // Sums in registers of their own hide each other's latency.
    __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0;
    size_t i = 0;
    for (; i + 2 <= steps; i += 2) {
      sum0 = add(i, sum0);
      sum1 = add(i + 1, sum1);
    }
    if (i < steps) sum0 = add(i, sum0);
    return _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
  }

  static void look_up(const uint8_t* table, uint8_t* bytes) {
    const __m512i index = _mm512_load_si512(bytes);
    const __m512i low = _mm512_permutex2var_epi8(
        _mm512_load_si512(table), index, _mm512_load_si512(table + 64));
    const __m512i high = _mm512_permutex2var_epi8(
        _mm512_load_si512(table + 128), index, _mm512_load_si512(table + 192));
    _mm512_store_si512(
        bytes, _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high));
  }

  static size_t count_ones(const uint8_t* bitmap, size_t count) {
    __m512i sum = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 512 <= count; i += 512) {
      sum = _mm512_add_epi64(
          sum, _mm512_popcnt_epi64(_mm512_loadu_si512(bitmap + i / 8)));
    }
    return static_cast<size_t>(_mm512_reduce_add_epi64(sum)) +
           body::count_ones(bitmap + i / 8, count - i);
  }

  static void merge(const uint8_t* bitmap, size_t count, const uint8_t* left,
                    const uint8_t* right, uint8_t* out) {
    for (size_t i = 0; i < count; i += 64) {
      const uint64_t mask = mlx_entropy::load<uint64_t>(bitmap + i / 8);
      // Merge-masked: the zeroing form waits for its destination on AMD.
      const __m512i l = _mm512_loadu_si512(left);
      const __m512i r = _mm512_loadu_si512(right);
      const __m512i spread = _mm512_mask_expand_epi8(l, ~mask, l);
      _mm512_storeu_si512(out + i, _mm512_mask_expand_epi8(spread, mask, r));
      const auto ones = static_cast<size_t>(_mm_popcnt_u64(mask));
      right += ones;
      left += 64 - ones;
    }
  }

  template <int kDepth>
  static void unpack(const uint8_t* packed, size_t count, const uint8_t* table,
                     uint8_t* out) {
    const __m512i order = _mm512_load_si512(kUnpackOrders[kDepth - 1].data());
    const __m512i shift = _mm512_load_si512(kUnpackShifts[kDepth - 1].data());
    const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << kDepth) - 1));
    const bool identity = table == nullptr;
    const auto line = [table, identity](size_t i) {
      return identity ? _mm512_setzero_si512()
                      : _mm512_load_si512(table + 64 * i);
    };
    const __m512i line0 = line(0);
    const __m512i line1 = kDepth > 6 ? line(1) : line0;
    const __m512i line2 = kDepth > 7 ? line(2) : line0;
    const __m512i line3 = kDepth > 7 ? line(3) : line0;
    for (size_t i = 0; i < count; i += 64, packed += 8 * kDepth) {
      const __m512i words =
          _mm512_permutexvar_epi8(order, _mm512_loadu_si512(packed));
      const __m512i index =
          _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, words), mask);
      __m512i value;
      if (identity) {
        value = index;
      } else if constexpr (kDepth <= 4) {
        value = _mm512_shuffle_epi8(line0, index);
      } else if constexpr (kDepth <= 6) {
        value = _mm512_permutexvar_epi8(index, line0);
      } else {
        value = _mm512_permutex2var_epi8(line0, index, line1);
        if constexpr (kDepth > 7) {
          value = _mm512_mask_blend_epi8(
              _mm512_movepi8_mask(index), value,
              _mm512_permutex2var_epi8(line2, index, line3));
        }
      }
      _mm512_storeu_si512(out + i, value);
    }
  }
};

const KernelTable kTable = {"avx512",
                            Avx512::kMaxStreams,
                            body::product<Avx512>,
                            body::quantize_row<Avx512>,
                            body::decode_tile<Avx512>,
                            body::check_tile<Avx512>,
                            &kAvx512Transformer};

}  // namespace
}  // namespace mlx_entropy

MLX_ENTROPY_END_TARGET

namespace mlx_entropy {
const KernelTable& avx512_kernels() { return kTable; }
}  // namespace mlx_entropy

#endif  // __x86_64__
