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
    constexpr uint64_t kField = 0x0101010101010101u * ((1u << kDepth) - 1);
    const __m256i line =
        _mm256_load_si256(reinterpret_cast<const __m256i*>(table));
    for (size_t i = 0; i < count; i += 32) {
      alignas(32) uint64_t index[4];
      for (size_t k = 0; k < 4; ++k, packed += kDepth) {
        index[k] = _pdep_u64(mlx_entropy::load<uint64_t>(packed), kField);
      }
      if constexpr (kDepth <= 4) {
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(out + i),
            _mm256_shuffle_epi8(
                line,
                _mm256_load_si256(reinterpret_cast<const __m256i*>(index))));
      } else {
        const auto* const bytes = reinterpret_cast<const uint8_t*>(index);
        for (size_t k = 0; k < 32; ++k) out[i + k] = table[bytes[k]];
      }
    }
  }
};

}  // namespace
}  // namespace mlx_entropy
