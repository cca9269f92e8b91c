// The AVX2 target's transformer kernels.
#if defined(__x86_64__)

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/float_bits.h"
#include "base/target_region.h"
#include "kernels/transformer.h"

MLX_ENTROPY_BEGIN_TARGET("avx2,fma,f16c,bmi,bmi2,popcnt")

#include "kernels/body/attention.h"

namespace mlx_entropy {
namespace {

// See ScalarFloats for what the functions promise.
struct Avx2Floats {
  using Float = __m256;
  static constexpr size_t kWidth = 8;
  static constexpr size_t kTileRows = 6;
  static constexpr size_t kTileVectors = 2;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float set(float a) { return _mm256_set1_ps(a); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float fma(Float a, Float b, Float c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static float sum(Float a) {
    const __m128 half =
        _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  static Float round(Float a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Float scale(Float a, Float n) {
    const __m256i exponent =
        _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  static Float from_float16(const uint16_t* p) {
    return _mm256_cvtph_ps(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  // Lane l of row[r] is row 4l + r, which 4 x 4 transpositions within lanes
  // then put in order.
  static void turn4(const float* from, size_t stride, float* to,
                    size_t to_stride) {
    __m256 row[4];
    for (size_t r = 0; r < 4; ++r) {
      const float* const p = from + r * stride;
      row[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                    _mm_loadu_ps(p + 4 * stride), 1);
    }
    const __m256 low01 = _mm256_unpacklo_ps(row[0], row[1]);
    const __m256 high01 = _mm256_unpackhi_ps(row[0], row[1]);
    const __m256 low23 = _mm256_unpacklo_ps(row[2], row[3]);
    const __m256 high23 = _mm256_unpackhi_ps(row[2], row[3]);
    store(to, _mm256_shuffle_ps(low01, low23, 0x44));
    store(to + to_stride, _mm256_shuffle_ps(low01, low23, 0xee));
    store(to + 2 * to_stride, _mm256_shuffle_ps(high01, high23, 0x44));
    store(to + 3 * to_stride, _mm256_shuffle_ps(high01, high23, 0xee));
  }
};

constexpr TransformerKernels kKernels = body::transformer_kernels<Avx2Floats>();

}  // namespace
}  // namespace mlx_entropy

MLX_ENTROPY_END_TARGET

namespace mlx_entropy {
constexpr TransformerKernels kAvx2Transformer = kKernels;
}  // namespace mlx_entropy

#endif  // __x86_64__
