// AVX-512 without VBMI2 (Skylake-X to Cooper Lake): 64 rans16 lanes in two
// registers of 16-bit states, tables in byte shuffles of 16 entries.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "base/bits.h"
#include "base/float_bits.h"
#include "base/target_region.h"
#include "kernels/cpu/merge_orders.h"
#include "kernels/kernels.h"

MLX_ENTROPY_BEGIN_TARGET(
    "avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")

#include "kernels/body/decode.h"
#include "kernels/body/product.h"
#include "kernels/body/tile_reader.h"
#include "kernels/cpu/avx2_tree.h"
#include "kernels/cpu/avx512_vectors.h"

namespace mlx_entropy {
namespace {

__m512i broadcast16(const uint8_t* table) {
  return _mm512_broadcast_i32x4(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// Alias tables in registers; see AliasTable. The frequency comes from the
// symbol, because one shuffle of 16 entries is cheaper than two.
struct Tables16 {
  explicit Tables16(const AliasTable& table)
      : divider(broadcast16(table.divider.data())),
        symbol{broadcast16(table.symbol.data()),
               broadcast16(table.symbol.data() + 16)},
        rank_shift{broadcast16(table.rank_shift.data()),
                   broadcast16(table.rank_shift.data() + 16)},
        frequency(broadcast16(table.symbol_frequency.data())) {}

  __m512i divider, symbol[2], rank_shift[2], frequency;
};

// States of the even lanes and of the odd lanes, 16 bits each. Neither is in
// order: elements 8 q to 8 q + 3 are number 4 q and its successors, elements
// 8 q + 4 to 8 q + 7 number 16 + 4 q and its successors, which is where packing
// two registers of 32-bit elements puts them (see refill16).
struct Lanes16 {
  __m512i even, odd;
};

constexpr size_t number_of_element(size_t element) {
  return element / 8 * 4 + element % 4 + (element % 8 < 4 ? 0 : 16);
}

// 32-bit elements in the order of the mask from the next bytes of the stream.
inline __m512i expand_bytes(const uint8_t** stream, uint32_t mask) {
  const __m512i bytes = _mm512_cvtepu8_epi32(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(*stream)));
  *stream += _mm_popcnt_u32(mask);
  return _mm512_maskz_expand_epi32(static_cast<__mmask16>(mask), bytes);
}

// Shifts a byte of the stream into each lane below 256. Without VBMI2 only
// elements of 32 bits can be expanded: two halves, packed.
inline __m512i refill16(__m512i x, const uint8_t** stream) {
  const __mmask32 low = _mm512_cmplt_epu16_mask(x, _mm512_set1_epi16(256));
  const __m512i first = expand_bytes(stream, _pext_u32(low, 0x0f0f0f0f));
  const __m512i second = expand_bytes(stream, _pext_u32(low, 0xf0f0f0f0));
  return _mm512_or_si512(_mm512_mask_slli_epi16(x, low, x, 8),
                         _mm512_packus_epi32(first, second));
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
  const auto look_up = [&](const __m512i* table) {
    return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(table[0], bucket),
                                    aliased, table[1], bucket);
  };
  const __m512i symbol = look_up(t.symbol);
  const __m512i rank = _mm512_add_epi8(slot, look_up(t.rank_shift));
  const __m512i frequency = _mm512_shuffle_epi8(t.frequency, symbol);
  x->even =
      _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(frequency, low_byte),
                                          _mm512_srli_epi16(x->even, 8)),
                       _mm512_and_si512(rank, low_byte));
  x->odd = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(frequency, 8),
                                               _mm512_srli_epi16(x->odd, 8)),
                            _mm512_srli_epi16(rank, 8));
  x->even = refill16(x->even, stream);
  x->odd = refill16(x->odd, stream);
  // Four pairs of lanes are a 64-bit element.
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7),
                                  symbol);
}

inline Lanes16 load_lanes(const uint8_t* states) {
  alignas(64) uint16_t lanes[2][32];
  for (size_t i = 0; i < 32; ++i) {
    const uint8_t* const pair = states + 4 * number_of_element(i);
    lanes[0][i] = load<uint16_t>(pair);
    lanes[1][i] = load<uint16_t>(pair + 2);
  }
  return {_mm512_load_si512(lanes[0]), _mm512_load_si512(lanes[1])};
}

inline void store_lanes(const Lanes16& x, uint8_t* states) {
  alignas(64) uint16_t lanes[2][32];
  _mm512_store_si512(lanes[0], x.even);
  _mm512_store_si512(lanes[1], x.odd);
  for (size_t i = 0; i < 32; ++i) {
    uint8_t* const pair = states + 4 * number_of_element(i);
    store(pair, lanes[0][i]);
    store(pair + 2, lanes[1][i]);
  }
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
  const __m512i words = _mm512_cvtepu16_epi32(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(*stream)));
  *stream += 2 * _mm_popcnt_u32(low);
  return _mm512_or_si512(_mm512_mask_slli_epi32(x, low, x, 16),
                         _mm512_maskz_expand_epi32(low, words));
}

}  // namespace
}  // namespace mlx_entropy

#include "kernels/cpu/avx512_streams.h"

namespace mlx_entropy {
namespace {

struct Avx512Bw : Avx512Vectors, Avx512Streams, Avx2Tree {
  static constexpr int kMaxStreams = 8;

  // Without VNNI: 16-bit codes times 16-bit integers.
  static constexpr bool kSplitActivations = false;
  static constexpr size_t kDepth = 2;

  static Int dot(Int acc, Int codes, Int x) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(codes, x));
  }

  // Four codes of a row move as one 32-bit element; then the elements of a
  // vector become the first two codes, widened, and the last two.
  static void pack(const uint8_t* codes, size_t cols, uint8_t* panel) {
    const __m512i first = _mm512_broadcast_i32x4(_mm_setr_epi8(
        0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
    const __m512i last = _mm512_broadcast_i32x4(_mm_setr_epi8(
        2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
    alignas(64) float columns[16 * 16];
    for (size_t k = 0; k < cols; k += 64) {
      transpose(reinterpret_cast<const float*>(codes + k), cols / 4, columns);
      uint8_t* const to = panel + k / 2 * 64;
      for (size_t i = 0; i < 16; ++i) {
        const __m512i four =
            _mm512_castps_si512(_mm512_load_ps(columns + 16 * i));
        _mm512_store_si512(to + 128 * i, _mm512_shuffle_epi8(four, first));
        _mm512_store_si512(to + 128 * i + 64, _mm512_shuffle_epi8(four, last));
      }
    }
  }

  // 32 codes times 32 integers, in 16 lanes of 2 neighbouring codes.
  static __m512i dot32(const uint8_t* codes, const uint8_t* x) {
    return _mm512_madd_epi16(_mm512_cvtepu8_epi16(_mm256_loadu_si256(
                                 reinterpret_cast<const __m256i*>(codes))),
                             _mm512_loadu_si512(x));
  }

  template <size_t kGroup>
  static float dot_row(const uint8_t* codes, const uint8_t* x, size_t groups,
                       const float* scales) {
    const auto add = [&](size_t g, __m512 sum) {
      __m512i dots = dot32(codes + g * kGroup, x + 2 * g * kGroup);
      for (size_t k = g * kGroup + 32; k < (g + 1) * kGroup; k += 32) {
        dots = _mm512_add_epi32(dots, dot32(codes + k, x + 2 * k));
      }
      return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots),
                             _mm512_set1_ps(scales[g]), sum);
    };
    // Sums in registers of their own hide each other's latency.
    __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0;
    size_t g = 0;
    for (; g + 2 <= groups; g += 2) {
      sum0 = add(g, sum0);
      sum1 = add(g + 1, sum1);
    }
    if (g < groups) sum0 = add(g, sum0);
    return _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
  }

  // Words hold two entries each: 7 bits of an index choose the word, the
  // lowest the byte in it.
  static void look_up(const uint8_t* table, uint8_t* bytes) {
    const __m512i low_byte = _mm512_set1_epi16(0xff);
    const auto entries = [&](__m512i index) {
      const __m512i word = _mm512_srli_epi16(index, 1);
      const __m512i low = _mm512_permutex2var_epi16(
          _mm512_load_si512(table), word, _mm512_load_si512(table + 64));
      const __m512i high = _mm512_permutex2var_epi16(
          _mm512_load_si512(table + 128), word, _mm512_load_si512(table + 192));
      const __m512i pair = _mm512_mask_blend_epi16(
          _mm512_test_epi16_mask(index, _mm512_set1_epi16(128)), low, high);
      const __m512i odd = _mm512_and_si512(index, _mm512_set1_epi16(1));
      return _mm512_and_si512(
          _mm512_srlv_epi16(pair, _mm512_slli_epi16(odd, 3)), low_byte);
    };
    const __m512i index = _mm512_load_si512(bytes);
    const __m512i even = entries(_mm512_and_si512(index, low_byte));
    const __m512i odd = entries(_mm512_srli_epi16(index, 8));
    _mm512_store_si512(bytes, _mm512_or_si512(even, _mm512_slli_epi16(odd, 8)));
  }
};

const KernelTable kTable = {"avx512bw",
                            Avx512Bw::kMaxStreams,
                            body::product<Avx512Bw>,
                            body::quantize_row<Avx512Bw>,
                            body::decode_tile<Avx512Bw>,
                            body::check_tile<Avx512Bw>,
                            &kAvx512Transformer};

}  // namespace
}  // namespace mlx_entropy

MLX_ENTROPY_END_TARGET

namespace mlx_entropy {
const KernelTable& avx512bw_kernels() { return kTable; }
}  // namespace mlx_entropy

#endif  // __x86_64__
