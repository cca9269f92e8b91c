#include "base/float_bits.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace mlx_entropy {
namespace {

struct Layout {
  FloatType type;
  int mantissa;  // bits stored
  int bias;
};

constexpr Layout kFloat16 = {FloatType::kFloat16, 10, 15};
constexpr Layout kBfloat16 = {FloatType::kBfloat16, 7, 127};

int exponent_field(const Layout& layout, uint32_t bits) {
  return static_cast<int>((bits & 0x7fff) >> layout.mantissa);
}
int full_exponent(const Layout& layout) { return 0x7fff >> layout.mantissa; }
bool is_nan_pattern(const Layout& layout, uint32_t bits) {
  return exponent_field(layout, bits) == full_exponent(layout) &&
         (bits & ((1u << layout.mantissa) - 1)) != 0;
}
bool is_inf_pattern(const Layout& layout, uint32_t bits) {
  return exponent_field(layout, bits) == full_exponent(layout) &&
         (bits & ((1u << layout.mantissa) - 1)) == 0;
}

// The value of a finite pattern by the definition of the format; the next
// power of two for infinity, which is where rounding to infinity begins from.
double slow_value(const Layout& layout, uint32_t bits) {
  const auto fraction =
      static_cast<double>(bits & ((1u << layout.mantissa) - 1));
  const int field = exponent_field(layout, bits);
  const double significand =
      field == 0 ? fraction : fraction + std::ldexp(1.0, layout.mantissa);
  const double magnitude = std::ldexp(
      significand, (field == 0 ? 1 : field) - layout.bias - layout.mantissa);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(FloatBits, EveryPatternToFloat) {
  for (const Layout& layout : {kFloat16, kBfloat16}) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const float value = to_float(layout.type, bits);
      if (is_nan_pattern(layout, bits)) {
        ASSERT_TRUE(std::isnan(value)) << bits;
      } else if (is_inf_pattern(layout, bits)) {
        ASSERT_TRUE(std::isinf(value)) << bits;
      } else {
        ASSERT_EQ(static_cast<double>(value), slow_value(layout, bits));
      }
      ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
    }
  }
}

TEST(FloatBits, EveryPatternComesBack) {
  for (const Layout& layout : {kFloat16, kBfloat16}) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      uint32_t expected = bits;
      if (is_nan_pattern(layout, bits)) {
        expected |= 1u << (layout.mantissa - 1);  // quiet, same payload
      }
      ASSERT_EQ(from_float(layout.type, to_float(layout.type, bits)), expected);
    }
  }
}

// Between every two neighbours: the midpoint goes to the even one, and the
// floats beside it to the nearer one.
TEST(FloatBits, RoundsToNearestEven) {
  for (const Layout& layout : {kFloat16, kBfloat16}) {
    for (uint32_t sign : {0u, 0x8000u}) {
      for (uint32_t low = sign; !is_inf_pattern(layout, low); ++low) {
        const double middle =
            (slow_value(layout, low) + slow_value(layout, low + 1)) / 2;
        const auto tie = static_cast<float>(middle);
        if (static_cast<double>(tie) != middle) continue;
        const float toward_low = std::nextafter(tie, 0.0f);
        const float toward_high = std::nextafter(
            tie, std::copysign(std::numeric_limits<float>::infinity(), tie));
        const uint32_t even = low % 2 == 0 ? low : low + 1;
        ASSERT_EQ(from_float(layout.type, tie), even) << low;
        ASSERT_EQ(from_float(layout.type, toward_low), low) << low;
        ASSERT_EQ(from_float(layout.type, toward_high), low + 1) << low;
      }
    }
  }
}

TEST(FloatBits, LargeAndTinyFloats) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float largest = std::numeric_limits<float>::max();
  const float tiniest = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(float_to_float16(infinity), 0x7c00u);
  EXPECT_EQ(float_to_float16(-infinity), 0xfc00u);
  EXPECT_EQ(float_to_float16(largest), 0x7c00u);
  EXPECT_EQ(float_to_float16(-largest), 0xfc00u);
  EXPECT_EQ(float_to_float16(tiniest), 0x0000u);
  EXPECT_EQ(float_to_float16(-tiniest), 0x8000u);
  EXPECT_EQ(float_to_bfloat16(infinity), 0x7f80u);
  EXPECT_EQ(float_to_bfloat16(largest), 0x7f80u);
  EXPECT_EQ(float_to_bfloat16(-tiniest), 0x8000u);
  // A NaN whose payload is in the bits that are cut off stays a NaN.
  const float low_nan = std::bit_cast<float>(0xff800001u);
  EXPECT_EQ(float_to_float16(low_nan), 0xfe00u);
  EXPECT_EQ(float_to_bfloat16(low_nan), 0xffc0u);
}

TEST(FloatBits, OrderedIsOneToOneAndOrdered) {
  for (const Layout& layout : {kFloat16, kBfloat16}) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const int32_t ordered = ordered_from_bits(bits, 16);
      ASSERT_GE(ordered, -32768);
      ASSERT_LE(ordered, 32767);
      ASSERT_EQ(bits_from_ordered(ordered, 16), bits);
    }
    for (int32_t ordered = -32768; ordered < 32767; ++ordered) {
      const uint32_t low = bits_from_ordered(ordered, 16);
      const uint32_t high = bits_from_ordered(ordered + 1, 16);
      if (is_nan_pattern(layout, low) || is_nan_pattern(layout, high)) continue;
      ASSERT_LE(slow_value(layout, low), slow_value(layout, high)) << ordered;
    }
  }
  EXPECT_EQ(ordered_from_bits(0x80000000, 32), -1);
  EXPECT_EQ(ordered_from_bits(0xffffffff, 32), INT32_MIN);
  EXPECT_EQ(ordered_from_bits(0x7fffffff, 32), INT32_MAX);
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 65537) {
    const auto pattern = static_cast<uint32_t>(bits);
    ASSERT_EQ(bits_from_ordered(ordered_from_bits(pattern, 32), 32), pattern);
  }
}

// docs/format.md: t out of the range of a 16-bit type wraps its magnitude and
// keeps its sign.
TEST(FloatBits, OrderedOutOfRange) {
  EXPECT_EQ(bits_from_ordered(32768, 16), 0u);
  EXPECT_EQ(bits_from_ordered(32769, 16), 1u);
  EXPECT_EQ(bits_from_ordered(-32769, 16), 0x8000u);
  EXPECT_EQ(bits_from_ordered(INT32_MIN, 16), 0xffffu);
}

TEST(FloatBits, SignMovesToTheLowestBit) {
  EXPECT_EQ(sign_to_low_bit(0x8000, 16), 1u);
  EXPECT_EQ(sign_to_low_bit(0x3c00, 16), 0x7800u);
  EXPECT_EQ(sign_to_low_bit(0x80000001, 32), 3u);
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    ASSERT_LT(sign_to_low_bit(bits, 16), 65536u);
    ASSERT_EQ(sign_to_high_bit(sign_to_low_bit(bits, 16), 16), bits);
    const uint32_t word = bits * 65537u;
    ASSERT_EQ(sign_to_high_bit(sign_to_low_bit(word, 32), 32), word);
  }
}

}  // namespace
}  // namespace mlx_entropy
