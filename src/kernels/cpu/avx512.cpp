// AVX-512 with VBMI2: 64 rans16 lanes in two registers of 16-bit states.
#if defined(__x86_64__)

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/bits.h"
#include "base/float_bits.h"
#include "base/target_region.h"
#include "kernels/kernels.h"

MLX_ENTROPY_BEGIN_TARGET(
    "avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,"
    "avx512vbmi,avx512vbmi2")

#include "kernels/body/decode.h"
#include "kernels/body/product.h"
#include "kernels/body/tile_reader.h"
#include "kernels/cpu/avx512_floats.h"

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

struct Avx512 : Avx512Floats {
  static constexpr int kMaxStreams = 8;

  static void look_up(const uint8_t* table, uint8_t* bytes) {
    const __m512i index = _mm512_load_si512(bytes);
    const __m512i low = _mm512_permutex2var_epi8(
        _mm512_load_si512(table), index, _mm512_load_si512(table + 64));
    const __m512i high = _mm512_permutex2var_epi8(
        _mm512_load_si512(table + 128), index, _mm512_load_si512(table + 192));
    _mm512_store_si512(
        bytes, _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high));
  }

  template <int V>
  static void decode16(uint8_t (*states)[256], const uint8_t** streams,
                       const AliasTable& table, size_t steps,
                       uint8_t* const* out) {
    const Tables16 tables(table);
    Lanes16 x[V];
    const uint8_t* p[V];
    uint8_t* to[V];
    for (int v = 0; v < V; ++v) {
      x[v] = load_lanes(states[v]);
      p[v] = streams[v];
      to[v] = out[v];
    }
    for (size_t step = 0; step < steps; ++step) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        _mm512_storeu_si512(to[v] + step * kLanes,
                            step16(&x[v], &p[v], tables));
      }
    }
    for (int v = 0; v < V; ++v) {
      store_lanes(x[v], states[v]);
      streams[v] = p[v];
    }
  }

  template <int V>
  static void decode32(uint8_t (*states)[256], const uint8_t** streams,
                       const uint32_t* slots, size_t steps,
                       uint8_t* const* out) {
    for (int v = 0; v < V; ++v) {
      __m512i x[4];
      for (int i = 0; i < 4; ++i) {
        x[i] = _mm512_load_si512(states[v] + 64 * i);
      }
      const uint8_t* p = streams[v];
      for (size_t step = 0; step < steps; ++step) {
        for (int i = 0; i < 4; ++i) {
          __m128i symbols;
          x[i] = step32(x[i], &p, slots, &symbols);
          _mm_storeu_si128(
              reinterpret_cast<__m128i*>(out[v] + step * kLanes + 16 * i),
              symbols);
        }
      }
      for (int i = 0; i < 4; ++i) {
        _mm512_store_si512(states[v] + 64 * i, x[i]);
      }
      streams[v] = p;
    }
  }
};

const KernelTable kTable = {"avx512", Avx512::kMaxStreams,
                            body::product<Avx512>, body::decode_tile<Avx512>,
                            body::check_tile<Avx512>};

}  // namespace
}  // namespace mlx_entropy

MLX_ENTROPY_END_TARGET

namespace mlx_entropy {
const KernelTable& avx512_kernels() { return kTable; }
}  // namespace mlx_entropy

#endif  // __x86_64__
