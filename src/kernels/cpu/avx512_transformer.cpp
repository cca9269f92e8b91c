// The AVX-512 target's transformer kernels.
#if defined(__x86_64__)

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/float_bits.h"
#include "base/target_region.h"
#include "kernels/transformer.h"

MLX_ENTROPY_BEGIN_TARGET(
    "avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")

#include "kernels/body/attention.h"

namespace mlx_entropy {
namespace {

// See ScalarFloats for what the functions promise.
struct Avx512Floats {
  using Float = __m512;
  static constexpr size_t kWidth = 16;
  static constexpr size_t kTileRows = 6;
  static constexpr size_t kTileVectors = 4;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float set(float a) { return _mm512_set1_ps(a); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float fma(Float a, Float b, Float c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static float sum(Float a) { return _mm512_reduce_add_ps(a); }
  static Float round(Float a) {
    return _mm512_roundscale_ps(a,
                                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Float scale(Float a, Float n) { return _mm512_scalef_ps(a, n); }
  static Float from_float16(const uint16_t* p) {
    return _mm512_cvtph_ps(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  // Lane l of row[r] is row 4l + r, which 4 x 4 transpositions within lanes
  // then put in order.
  static void turn4(const float* from, size_t stride, float* to,
                    size_t to_stride) {
    __m512 row[4];
    for (size_t r = 0; r < 4; ++r) {
      const float* const p = from + r * stride;
      const __m512 a = _mm512_castps128_ps512(_mm_loadu_ps(p));
      const __m512 b = _mm512_insertf32x4(a, _mm_loadu_ps(p + 4 * stride), 1);
      const __m512 c = _mm512_insertf32x4(b, _mm_loadu_ps(p + 8 * stride), 2);
      row[r] = _mm512_insertf32x4(c, _mm_loadu_ps(p + 12 * stride), 3);
    }
    const __m512 low01 = _mm512_unpacklo_ps(row[0], row[1]);
    const __m512 high01 = _mm512_unpackhi_ps(row[0], row[1]);
    const __m512 low23 = _mm512_unpacklo_ps(row[2], row[3]);
    const __m512 high23 = _mm512_unpackhi_ps(row[2], row[3]);
    store(to, _mm512_shuffle_ps(low01, low23, 0x44));
    store(to + to_stride, _mm512_shuffle_ps(low01, low23, 0xee));
    store(to + 2 * to_stride, _mm512_shuffle_ps(high01, high23, 0x44));
    store(to + 3 * to_stride, _mm512_shuffle_ps(high01, high23, 0xee));
  }
};

constexpr TransformerKernels kKernels =
    body::transformer_kernels<Avx512Floats>();

}  // namespace
}  // namespace mlx_entropy

MLX_ENTROPY_END_TARGET

namespace mlx_entropy {
constexpr TransformerKernels kAvx512Transformer = kKernels;
}  // namespace mlx_entropy

#endif  // __x86_64__
