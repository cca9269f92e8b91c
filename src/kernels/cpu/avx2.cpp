// AVX2: 64 rans16 lanes in four registers of 16-bit states.
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
#include "kernels/cpu/merge_orders.h"
#include "kernels/kernels.h"

namespace mlx_entropy {
namespace {

// AVX2 has no expand instruction. Row m spreads the first bytes of a vector
// to the 16-bit elements whose bit is set in m and clears everything else.
constexpr auto make_byte_expansions() {
  std::array<std::array<uint8_t, 16>, 256> rows{};
  for (size_t mask = 0; mask < 256; ++mask) {
    uint8_t next = 0;
    for (size_t i = 0; i < 8; ++i) {
      rows[mask][2 * i] = (mask >> i & 1) != 0 ? next++ : uint8_t{0x80};
      rows[mask][2 * i + 1] = 0x80;
    }
  }
  return rows;
}

// The same for 16-bit words to 32-bit elements, as permutation indices; those
// of clear bits do not matter.
constexpr auto make_word_expansions() {
  std::array<std::array<uint8_t, 8>, 256> rows{};
  for (size_t mask = 0; mask < 256; ++mask) {
    uint8_t next = 0;
    for (size_t i = 0; i < 8; ++i) {
      rows[mask][i] = (mask >> i & 1) != 0 ? next++ : uint8_t{0};
    }
  }
  return rows;
}

alignas(64) constexpr auto kByteExpansions = make_byte_expansions();
alignas(64) constexpr auto kWordExpansions = make_word_expansions();

}  // namespace
}  // namespace mlx_entropy

MLX_ENTROPY_BEGIN_TARGET("avx2,fma,f16c,bmi,bmi2,popcnt")

#include "kernels/body/decode.h"
#include "kernels/body/product.h"
#include "kernels/body/tile_reader.h"
#include "kernels/cpu/avx2_tree.h"

namespace mlx_entropy {
namespace {

__m256i broadcast16(const uint8_t* table) {
  return _mm256_broadcastsi128_si256(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// Alias tables in registers; see AliasTable. The frequency comes from the
// symbol, because one 16-entry shuffle is cheaper than two and a blend.
struct Tables16 {
  explicit Tables16(const AliasTable& table)
      : divider(broadcast16(table.divider.data())),
        symbol{broadcast16(table.symbol.data()),
               broadcast16(table.symbol.data() + 16)},
        rank_shift{broadcast16(table.rank_shift.data()),
                   broadcast16(table.rank_shift.data() + 16)},
        frequency(broadcast16(table.symbol_frequency.data())) {}

  __m256i divider, symbol[2], rank_shift[2], frequency;
};

// States of 32 neighbouring lanes: the 16 even and the 16 odd ones.
struct Lanes16 {
  __m256i even, odd;
};

// Symbols of 32 lanes; the states advance but are not refilled.
inline __m256i advance16(Lanes16* x, const Tables16& t) {
  const __m256i low_byte = _mm256_set1_epi16(0xff);
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i slot = _mm256_or_si256(_mm256_and_si256(x->even, low_byte),
                                       _mm256_slli_epi16(x->odd, 8));
  const __m256i bucket = _mm256_and_si256(_mm256_srli_epi16(slot, 4), nibble);
  const __m256i own = _mm256_cmpgt_epi8(_mm256_shuffle_epi8(t.divider, bucket),
                                        _mm256_and_si256(slot, nibble));
  const __m256i symbol =
      _mm256_blendv_epi8(_mm256_shuffle_epi8(t.symbol[1], bucket),
                         _mm256_shuffle_epi8(t.symbol[0], bucket), own);
  const __m256i rank = _mm256_add_epi8(
      slot,
      _mm256_blendv_epi8(_mm256_shuffle_epi8(t.rank_shift[1], bucket),
                         _mm256_shuffle_epi8(t.rank_shift[0], bucket), own));
  const __m256i frequency = _mm256_shuffle_epi8(t.frequency, symbol);
  x->even =
      _mm256_add_epi16(_mm256_mullo_epi16(_mm256_and_si256(frequency, low_byte),
                                          _mm256_srli_epi16(x->even, 8)),
                       _mm256_and_si256(rank, low_byte));
  x->odd = _mm256_add_epi16(_mm256_mullo_epi16(_mm256_srli_epi16(frequency, 8),
                                               _mm256_srli_epi16(x->odd, 8)),
                            _mm256_srli_epi16(rank, 8));
  return symbol;
}

inline __m256i expand_bytes(const uint8_t** stream, uint32_t low_half,
                            uint32_t high_half) {
  const auto part = [](const uint8_t* from, uint32_t mask) {
    return _mm_shuffle_epi8(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)),
        _mm_load_si128(
            reinterpret_cast<const __m128i*>(kByteExpansions[mask].data())));
  };
  const __m128i low = part(*stream, low_half);
  *stream += _mm_popcnt_u32(low_half);
  const __m128i high = part(*stream, high_half);
  *stream += _mm_popcnt_u32(high_half);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// Shifts a byte of the stream into each lane below 256: 16 lanes of `a`, then
// 16 lanes of `b`.
inline void refill16(__m256i* a, __m256i* b, const uint8_t** stream) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low_a = _mm256_cmpeq_epi16(_mm256_srli_epi16(*a, 8), zero);
  const __m256i low_b = _mm256_cmpeq_epi16(_mm256_srli_epi16(*b, 8), zero);
  // Packing works within 128-bit halves: a's low half, b's low half, a's high
  // half, b's high half.
  const auto mask = static_cast<uint32_t>(
      _mm256_movemask_epi8(_mm256_packs_epi16(low_a, low_b)));
  const __m256i bytes_a = expand_bytes(stream, mask & 255, mask >> 16 & 255);
  const __m256i bytes_b = expand_bytes(stream, mask >> 8 & 255, mask >> 24);
  *a = _mm256_or_si256(_mm256_blendv_epi8(*a, _mm256_slli_epi16(*a, 8), low_a),
                       bytes_a);
  *b = _mm256_or_si256(_mm256_blendv_epi8(*b, _mm256_slli_epi16(*b, 8), low_b),
                       bytes_b);
}

// 32 natural lanes, as two registers of 16, to even and odd lanes.
inline Lanes16 split_lanes(const uint8_t* states) {
  alignas(32) uint16_t lanes[2][16];
  for (size_t i = 0; i < 32; ++i) {
    lanes[i % 2][i / 2] = load<uint16_t>(states + 2 * i);
  }
  return {_mm256_load_si256(reinterpret_cast<const __m256i*>(lanes[0])),
          _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes[1]))};
}

inline void merge_lanes(const Lanes16& x, uint8_t* states) {
  alignas(32) uint16_t lanes[2][16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes[0]), x.even);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes[1]), x.odd);
  for (size_t i = 0; i < 32; ++i) {
    store(states + 2 * i, lanes[i % 2][i / 2]);
  }
}

// One step of 8 rans32 lanes; the symbols end in the low 8 bytes.
inline __m256i step32(__m256i x, const uint8_t** stream, const uint32_t* slots,
                      uint8_t* out) {
  const __m256i field = _mm256_set1_epi32(4095);
  const __m256i entry = _mm256_i32gather_epi32(
      reinterpret_cast<const int*>(slots), _mm256_and_si256(x, field), 4);
  const __m256i top_bytes = _mm256_setr_epi8(
      3, 7, 11, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 3, 7, 11,
      15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i symbols = _mm256_shuffle_epi8(entry, top_bytes);
  store(out, static_cast<uint32_t>(
                 _mm_cvtsi128_si32(_mm256_castsi256_si128(symbols))));
  store(out + 4, static_cast<uint32_t>(
                     _mm_cvtsi128_si32(_mm256_extracti128_si256(symbols, 1))));
  x = _mm256_add_epi32(
      _mm256_mullo_epi32(_mm256_and_si256(_mm256_srli_epi32(entry, 12), field),
                         _mm256_srli_epi32(x, 12)),
      _mm256_and_si256(entry, field));
  const __m256i low =
      _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const auto mask =
      static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(low)));
  const __m256i words = _mm256_cvtepu16_epi32(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(*stream)));
  const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(
      reinterpret_cast<const __m128i*>(kWordExpansions[mask].data())));
  *stream += 2 * _mm_popcnt_u32(mask);
  const __m256i refilled = _mm256_or_si256(
      _mm256_slli_epi32(x, 16), _mm256_permutevar8x32_epi32(words, order));
  return _mm256_blendv_epi8(x, refilled, low);
}

struct Avx2 : Avx2Tree {
  using Float = __m256;
  static constexpr size_t kWidth = 8;
  static constexpr int kMaxStreams = 4;
  static constexpr size_t kPanelCols = 2;

  static constexpr size_t kTallCols = 6;

  // to[c * 16 + r] = from[r * stride + c], 16 x 16, in four parts.
  static void transpose(const float* from, size_t stride, float* to) {
    for (size_t r = 0; r < 16; r += 8) {
      for (size_t c = 0; c < 16; c += 8) {
        transpose8(from + r * stride + c, stride, to + c * 16 + r);
      }
    }
  }

  static void transpose8(const float* from, size_t stride, float* to) {
    __m256 a[8], b[8];
    for (size_t i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * stride);
    for (size_t i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (size_t i = 0; i < 8; i += 4) {
      a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
      a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
      a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
      a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (size_t i = 0; i < 4; ++i) {
      _mm256_storeu_ps(to + i * 16,
                       _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
      _mm256_storeu_ps(to + (i + 4) * 16,
                       _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
  }

  static Float zero() { return _mm256_setzero_ps(); }
  static Float set(float a) { return _mm256_set1_ps(a); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float fma(Float a, Float b, Float c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static float sum(Float a) {
    const __m128 half =
        _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float load_first(const float* p, size_t n) {
    alignas(32) static constexpr int32_t kMask[16] = {-1, -1, -1, -1,
                                                      -1, -1, -1, -1};
    return _mm256_maskload_ps(
        p, _mm256_loadu_si256(
               reinterpret_cast<const __m256i*>(kMask + (n < 8 ? 8 - n : 0))));
  }

  using Int = __m256i;
  static constexpr bool kSplitActivations = false;
  static constexpr size_t kDepth = 2;
  static constexpr size_t kPairColumns = 0;
  static constexpr size_t kSingleColumns = 2;

  static Int int_zero() { return _mm256_setzero_si256(); }
  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static Int shift_high(Int a) { return _mm256_slli_epi32(a, 8); }
  static Int load_panel(const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Int broadcast(const uint8_t* x) {
    return _mm256_set1_epi32(mlx_entropy::load<int32_t>(x));
  }
  static Int dot(Int acc, Int codes, Int x) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(codes, x));
  }

  // Four codes of a row move as one 32-bit element; then the elements of a
  // vector become the first two codes, widened, and the last two.
  static void pack(const uint8_t* codes, size_t cols, uint8_t* panel) {
    const __m256i first = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
    const __m256i last = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
    alignas(32) float columns[8 * 16];
    for (size_t k = 0; k < cols; k += 32) {
      for (size_t r = 0; r < 16; r += 8) {
        transpose8(reinterpret_cast<const float*>(codes + r * cols + k),
                   cols / 4, columns + r);
      }
      for (size_t i = 0; i < 16; ++i) {  // 8 elements of 16 rows, by halves
        const __m256i four =
            _mm256_castps_si256(_mm256_load_ps(columns + 8 * i));
        auto* const to = reinterpret_cast<__m256i*>(
            panel + (k / 2 + i / 2 * 2) * 64 + i % 2 * 32);
        _mm256_store_si256(to, _mm256_shuffle_epi8(four, first));
        _mm256_store_si256(to + 2, _mm256_shuffle_epi8(four, last));
      }
    }
  }

  // 16 codes times 16 integers, in 8 lanes of 2 neighbouring codes.
  static __m256i dot16(const uint8_t* codes, const uint8_t* x) {
    return _mm256_madd_epi16(
        _mm256_cvtepu8_epi16(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))),
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }

  template <size_t kGroup>
  static float dot_row(const uint8_t* codes, const uint8_t* x, size_t groups,
                       const float* scales) {
    __m256 sum = _mm256_setzero_ps();
    for (size_t g = 0; g < groups; ++g) {
      __m256i dots[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
      for (size_t k = 0; k < kGroup; k += 16) {
        const size_t at = g * kGroup + k;
        dots[k / 16 % 2] =
            _mm256_add_epi32(dots[k / 16 % 2], dot16(codes + at, x + 2 * at));
      }
      sum = _mm256_fmadd_ps(
          _mm256_cvtepi32_ps(_mm256_add_epi32(dots[0], dots[1])),
          _mm256_set1_ps(scales[g]), sum);
    }
    return Avx2::sum(sum);
  }

  // Bytes that are all ones where the 32 bits of the mask are set.
  static __m256i spread32(uint32_t mask) {
    const __m256i bit =
        _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
    const __m256i select = _mm256_setr_epi64x(
        0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i all = _mm256_set1_epi32(static_cast<int>(mask));
    return _mm256_cmpeq_epi8(
        _mm256_and_si256(_mm256_shuffle_epi8(all, select), bit), bit);
  }

  static void spread_mask(uint64_t mask, uint8_t* bytes) {
    const __m256i one = _mm256_set1_epi8(1);
    auto* const to = reinterpret_cast<__m256i*>(bytes);
    _mm256_storeu_si256(
        to, _mm256_and_si256(spread32(static_cast<uint32_t>(mask)), one));
    _mm256_storeu_si256(
        to + 1,
        _mm256_and_si256(spread32(static_cast<uint32_t>(mask >> 32)), one));
  }

  static void join_bits(const uint8_t* classes, const uint8_t* raw,
                        int raw_bits, uint8_t* out) {
    for (int half = 0; half < 2; ++half) {
      // Classes are at most 255 >> raw_bits, so no bit crosses a byte.
      __m256i value = _mm256_slli_epi16(
          _mm256_loadu_si256(
              reinterpret_cast<const __m256i*>(classes + 32 * half)),
          raw_bits);
      for (int bit = 0; bit < raw_bits; ++bit) {
        const __m256i set =
            spread32(mlx_entropy::load<uint32_t>(raw + 8 * bit + 4 * half));
        value = _mm256_or_si256(
            value, _mm256_and_si256(
                       set, _mm256_set1_epi8(static_cast<char>(1 << bit))));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * half), value);
    }
  }

  static __m256i load_words(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }

  // Bit patterns of 8 values to floats.
  static __m256 half_bits(FloatType type, __m256i bits) {
    if (type != FloatType::kFloat16) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    }
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(bits),
                                            _mm256_extracti128_si256(bits, 1)));
  }

  // Of 8 values with the sign in the lowest bit.
  static __m256 half_words(FloatType type, const uint32_t* words) {
    const __m256i w = load_words(words);
    return half_bits(
        type, _mm256_or_si256(_mm256_srli_epi32(w, 1),
                              _mm256_and_si256(_mm256_slli_epi32(w, 15),
                                               _mm256_set1_epi32(0x8000))));
  }

  static constexpr bool kConvertsHalves = true;
  static void half_floats(FloatType type, const uint32_t* words, size_t n,
                          float* out) {
    for (size_t i = 0; i < n; i += 8) {
      _mm256_storeu_ps(out + i, half_words(type, words + i));
    }
  }

  static void half_groups(FloatType type, const uint32_t* scale_words,
                          const uint32_t* offset_words,
                          const uint32_t* correction_words, size_t n,
                          float* scales, float* biases) {
    const bool is_float16 = type == FloatType::kFloat16;
    const __m256i low15 = _mm256_set1_epi32(0x7fff);
    const __m256i sign = _mm256_set1_epi32(0x8000);
    for (size_t i = 0; i < n; i += 8) {
      const __m256 scale = half_words(type, scale_words + i);
      _mm256_storeu_ps(scales + i, scale);
      const __m256i offset = _mm256_sub_epi32(load_words(offset_words + i),
                                              _mm256_set1_epi32(kOffsetBias));
      const __m256 product = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(offset));
      __m256i bits;
      if (is_float16) {
        bits = _mm256_cvtepu16_epi32(
            _mm256_cvtps_ph(product, _MM_FROUND_TO_NEAREST_INT));
      } else {
        const __m256i p = _mm256_castps_si256(product);
        const __m256i odd =
            _mm256_and_si256(_mm256_srli_epi32(p, 16), _mm256_set1_epi32(1));
        bits = _mm256_srli_epi32(
            _mm256_add_epi32(_mm256_add_epi32(p, low15), odd), 16);
        // A NaN stays one, whatever rounding did to it.
        bits = _mm256_blendv_epi8(
            bits, _mm256_set1_epi32(0x7fc0),
            _mm256_castps_si256(_mm256_cmp_ps(product, product, _CMP_UNORD_Q)));
      }
      bits = _mm256_andnot_si256(
          _mm256_cmpeq_epi32(offset, _mm256_setzero_si256()), bits);
      // Sign and magnitude to an integer of the same order, and back.
      const __m256i was_negative =
          _mm256_cmpeq_epi32(_mm256_and_si256(bits, sign), sign);
      const __m256i ordered =
          _mm256_xor_si256(_mm256_and_si256(bits, low15), was_negative);
      const __m256i moved = _mm256_add_epi32(
          ordered, _mm256_sub_epi32(
                       load_words(correction_words + i),
                       _mm256_set1_epi32(static_cast<int>(kCorrectionBias))));
      const __m256i negative = _mm256_srai_epi32(moved, 31);
      const __m256i magnitude =
          _mm256_and_si256(_mm256_xor_si256(moved, negative), low15);
      _mm256_storeu_ps(
          biases + i,
          half_bits(type, _mm256_or_si256(magnitude,
                                          _mm256_and_si256(negative, sign))));
    }
  }

  // Loads beat sixteen shuffles of 16 entries each.
  static void look_up(const uint8_t* table, uint8_t* bytes) {
    for (size_t i = 0; i < kLanes; ++i) bytes[i] = table[bytes[i]];
  }

  template <int V>
  static void decode16(uint8_t (*states)[256], const uint8_t** streams,
                       const AliasTable& table, size_t steps,
                       uint8_t* const* out) {
    const Tables16 tables(table);
    Lanes16 x[V][2];
    for (int v = 0; v < V; ++v) {
      x[v][0] = split_lanes(states[v]);
      x[v][1] = split_lanes(states[v] + 64);
    }
    for (size_t step = 0; step < steps; ++step) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        auto* const to = reinterpret_cast<__m256i*>(out[v] + step * kLanes);
        _mm256_storeu_si256(to, advance16(&x[v][0], tables));
        _mm256_storeu_si256(to + 1, advance16(&x[v][1], tables));
        refill16(&x[v][0].even, &x[v][1].even, &streams[v]);
        refill16(&x[v][0].odd, &x[v][1].odd, &streams[v]);
      }
    }
    for (int v = 0; v < V; ++v) {
      merge_lanes(x[v][0], states[v]);
      merge_lanes(x[v][1], states[v] + 64);
    }
  }

  template <int V>
  static void decode32(uint8_t (*states)[256], const uint8_t** streams,
                       const uint32_t* slots, size_t steps,
                       uint8_t* const* out) {
    for (int v = 0; v < V; ++v) {
      auto* const state = reinterpret_cast<__m256i*>(states[v]);
      __m256i x[8];
      for (int i = 0; i < 8; ++i) x[i] = _mm256_load_si256(state + i);
      for (size_t step = 0; step < steps; ++step) {
        for (int i = 0; i < 8; ++i) {
          x[i] =
              step32(x[i], &streams[v], slots, out[v] + step * kLanes + 8 * i);
        }
      }
      for (int i = 0; i < 8; ++i) _mm256_store_si256(state + i, x[i]);
    }
  }
};

const KernelTable kTable = {"avx2",
                            Avx2::kMaxStreams,
                            body::product<Avx2>,
                            body::quantize_row<Avx2>,
                            body::decode_tile<Avx2>,
                            body::check_tile<Avx2>,
                            &kAvx2Transformer};

}  // namespace
}  // namespace mlx_entropy

MLX_ENTROPY_END_TARGET

namespace mlx_entropy {
const KernelTable& avx2_kernels() { return kTable; }
}  // namespace mlx_entropy

#endif  // __x86_64__
