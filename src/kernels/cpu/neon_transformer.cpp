// The NEON target's transformer kernels.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/float_bits.h"
#include "kernels/transformer.h"

#include "kernels/body/attention.h"

namespace mlx_entropy {
namespace {

// See ScalarFloats for what the functions promise.
struct NeonFloats {
  using Float = float32x4_t;
  static constexpr size_t kWidth = 4;
  static constexpr size_t kTileRows = 6;
  static constexpr size_t kTileVectors = 4;

  static Float zero() { return vdupq_n_f32(0.0f); }
  static Float set(float a) { return vdupq_n_f32(a); }
  static Float load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Float a) { vst1q_f32(p, a); }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float div(Float a, Float b) { return vdivq_f32(a, b); }
  // FMIN and FMAX would return NaN wherever it is.
  static Float min(Float a, Float b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
  }
  static Float max(Float a, Float b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
  }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static float sum(Float a) { return vaddvq_f32(a); }
  static Float round(Float a) { return vrndnq_f32(a); }
  static Float scale(Float a, Float n) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return mul(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
  }
  static Float from_float16(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
  }

  static void turn4(const float* from, size_t stride, float* to,
                    size_t to_stride) {
    const Float a = load(from), b = load(from + stride);
    const Float c = load(from + 2 * stride), d = load(from + 3 * stride);
    const float32x4x2_t ab = vtrnq_f32(a, b), cd = vtrnq_f32(c, d);
    for (size_t i = 0; i < 2; ++i) {
      store(to + i * to_stride,
            vcombine_f32(vget_low_f32(ab.val[i]), vget_low_f32(cd.val[i])));
      store(to + (2 + i) * to_stride,
            vcombine_f32(vget_high_f32(ab.val[i]), vget_high_f32(cd.val[i])));
    }
  }
};

}  // namespace

constexpr TransformerKernels kNeonTransformer =
    body::transformer_kernels<NeonFloats>();

}  // namespace mlx_entropy

#endif  // __aarch64__
