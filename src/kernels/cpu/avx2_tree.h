// The operations on tree nodes of targets without VBMI2, with AVX2 and BMI2.
// Included by each of them inside its target region, after all standard
// headers and kernels/cpu/merge_orders.h.
#pragma once

namespace mlx_entropy {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

struct Avx2Tree {
  static size_t count_ones(const uint8_t* bitmap, size_t count) {
    return body::count_ones(bitmap, count);
  }

  static void merge(const uint8_t* bitmap, size_t count, const uint8_t* left,
                    const uint8_t* right, uint8_t* out) {
    for (size_t i = 0; i < count; i += 8) {
      const uint32_t mask = bitmap[i / 8];
      const __m128i both = _mm_castps_si128(_mm_loadh_pi(
          _mm_castsi128_ps(
              _mm_loadl_epi64(reinterpret_cast<const __m128i*>(left))),
          reinterpret_cast<const __m64*>(right)));
      const __m128i order = _mm_loadl_epi64(
          reinterpret_cast<const __m128i*>(kMergeOrders[mask].data()));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(out + i),
                       _mm_shuffle_epi8(both, order));
      const auto ones = static_cast<size_t>(_mm_popcnt_u32(mask));
      right += ones;
      left += 8 - ones;
    }
  }

  template <int kDepth>
  static void unpack(const uint8_t* packed, size_t count, const uint8_t* table,
                     uint8_t* out) {
    for (size_t i = 0; i < count; i += 32, packed += 4 * kDepth) {
      const __m256i index = unpack_indices<kDepth>(packed);
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(out + i),
          table == nullptr ? index : look_up32<kDepth>(table, index));
    }
  }

  // table[index] for indices of kDepth bits, from tables of 16 at a time.
  template <int kDepth>
  static __m256i look_up32(const uint8_t* table, __m256i index) {
    const auto line = [table](size_t i) {
      return _mm256_broadcastsi128_si256(
          _mm_load_si128(reinterpret_cast<const __m128i*>(table + 16 * i)));
    };
    if constexpr (kDepth <= 4) return _mm256_shuffle_epi8(line(0), index);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(index, 4), nibble);
    const __m256i low = _mm256_and_si256(index, nibble);
    __m256i value = _mm256_setzero_si256();
    for (size_t i = 0; i < size_t{1} << kDepth >> 4; ++i) {
      const __m256i here =
          _mm256_cmpeq_epi8(high, _mm256_set1_epi8(static_cast<char>(i)));
      value = _mm256_or_si256(
          value, _mm256_and_si256(here, _mm256_shuffle_epi8(line(i), low)));
    }
    return value;
  }

  // 32 fields of kDepth bits to bytes.
  template <int kDepth>
  static __m256i unpack_indices(const uint8_t* packed) {
    if constexpr (kDepth == 8) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed));
    } else if constexpr (kDepth == 4) {
      const __m256i pairs = _mm256_cvtepu8_epi16(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
      return _mm256_and_si256(
          _mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)),
          _mm256_set1_epi8(15));
    } else {
      constexpr uint64_t kField = 0x0101010101010101u * ((1u << kDepth) - 1);
      const auto eight = [packed](size_t k) {
        return static_cast<long long>(_pdep_u64(
            mlx_entropy::load<uint64_t>(packed + k * kDepth), kField));
      };
      return _mm256_setr_epi64x(eight(0), eight(1), eight(2), eight(3));
    }
  }
};

}  // namespace
}  // namespace mlx_entropy
