// The scalar target's transformer kernels. Run anywhere.
#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/float_bits.h"
#include "kernels/transformer.h"

#include "kernels/body/attention.h"

namespace mlx_entropy {
namespace {

struct ScalarFloats {
  using Float = float;
  static constexpr size_t kWidth = 1;
  static constexpr size_t kTileRows = 2;
  static constexpr size_t kTileVectors = 8;

  static Float zero() { return 0.0f; }
  static Float set(float a) { return a; }
  static Float load(const float* p) { return *p; }
  static void store(float* p, Float a) { *p = a; }
  static Float add(Float a, Float b) { return a + b; }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float div(Float a, Float b) { return a / b; }
  // Of NaN and a number, b.
  static Float min(Float a, Float b) { return a < b ? a : b; }
  static Float max(Float a, Float b) { return a > b ? a : b; }
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
  static float sum(Float a) { return a; }
  // To the nearest integer, for |a| below 2^22.
  static Float round(Float a) { return (a + 12582912.0f) - 12582912.0f; }
  // a * 2^n for an integer n in [-126, 127].
  static Float scale(Float a, Float n) {
    // A NaN, which has no integer, is in a as well.
    const int exponent = n == n ? static_cast<int>(n) : 0;
    return a * std::bit_cast<float>((exponent + 127) << 23);
  }
  static Float from_float16(const uint16_t* p) { return float16_to_float(*p); }
  // to[c * to_stride + r] = from[r * stride + c], kWidth rows x 4.
  static void turn4(const float* from, size_t, float* to, size_t to_stride) {
    for (size_t c = 0; c < 4; ++c) to[c * to_stride] = from[c];
  }
};

}  // namespace

constexpr TransformerKernels kScalarTransformer =
    body::transformer_kernels<ScalarFloats>();

}  // namespace mlx_entropy
