#include "convert/plane_plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace mlx_entropy {
namespace {

PlanePlan plan(PlaneKind kind, int value_bits,
               const std::vector<uint32_t>& values,
               Coder coder = Coder::kRans16) {
  PlaneHistogram histogram(kind, value_bits);
  histogram.add(values.data(), values.size());
  return plan_plane(kind, histogram, coder);
}

// What Container::parse asks of a plane (docs/format.md, section 5).
void expect_valid(const PlanePlan& plan, int width) {
  const Plane& plane = plan.plane;
  ASSERT_GE(plane.classes(), 1u);
  ASSERT_LE(plane.raw_bits + plane.shift, width);
  const uint64_t largest =
      plane.base +
      (((uint64_t{plane.classes()} << plane.raw_bits) - 1) << plane.shift);
  ASSERT_LT(largest, uint64_t{1} << width);
}

TEST(PlanePlan, ConstantPlanesCostNothing) {
  for (int width : {2, 8, 16, 32}) {
    const uint32_t top = width == 32 ? ~0u : (1u << width) - 1;
    for (uint32_t value : {0u, 1u, top / 3, top}) {
      const PlanePlan constant =
          plan(PlaneKind::kScales, width, std::vector<uint32_t>(5000, value));
      expect_valid(constant, width);
      EXPECT_FALSE(constant.plane.coded());
      EXPECT_EQ(constant.plane.raw_bits, 0);
      EXPECT_EQ(constant.plane.base, value);
    }
  }
}

TEST(PlanePlan, CommonLowBitsAreShiftedOut) {
  std::vector<uint32_t> values;
  for (uint32_t i = 0; i < 4000; ++i) values.push_back((i * 13 % 7) << 8 | 5);
  const PlanePlan shifted = plan(PlaneKind::kFloats, 16, values);
  expect_valid(shifted, 16);
  EXPECT_EQ(shifted.plane.shift + shifted.plane.raw_bits, 8);
  EXPECT_EQ(shifted.plane.raw_bits, 0);
  EXPECT_EQ(shifted.plane.base & 255, 5u);
}

TEST(PlanePlan, UniformValuesStayRaw) {
  std::mt19937 random(1);
  std::vector<uint32_t> values(20000);
  for (uint32_t& value : values) value = random() & 0xff;
  const PlanePlan raw = plan(PlaneKind::kCodes, 8, values);
  expect_valid(raw, 8);
  EXPECT_FALSE(raw.plane.coded());
  EXPECT_EQ(raw.plane.raw_bits, 8);
}

TEST(PlanePlan, ScatteredSymbolsGetAPalette) {
  std::mt19937 random(2);
  std::discrete_distribution<uint32_t> draw({60, 30, 9, 1});
  constexpr uint32_t kSymbols[] = {251, 3, 84, 200};
  std::vector<uint32_t> values(20000);
  for (uint32_t& value : values) value = kSymbols[draw(random)];
  const PlanePlan scattered = plan(PlaneKind::kCodes, 8, values);
  expect_valid(scattered, 8);
  EXPECT_EQ(scattered.plane.palette, (std::vector<uint8_t>{251, 3, 84, 200}));
}

TEST(PlanePlan, EstimateIsCloseToTheEntropy) {
  std::mt19937 random(3);
  std::normal_distribution<double> normal(128, 20);
  std::vector<uint64_t> counts(256, 0);
  std::vector<uint32_t> values(200000);
  for (uint32_t& value : values) {
    value = static_cast<uint32_t>(std::fmin(255, std::fmax(0, normal(random))));
    ++counts[value];
  }
  double entropy = 0;
  for (uint64_t count : counts) {
    const double p = static_cast<double>(count) / 200000;
    if (count > 0) entropy -= p * std::log2(p);
  }
  for (Coder coder : {Coder::kRans16, Coder::kRans32}) {
    const PlanePlan best = plan(PlaneKind::kCodes, 8, values, coder);
    expect_valid(best, 8);
    EXPECT_LT(best.bits / 200000, entropy + 0.05);
    EXPECT_GT(best.bits / 200000, entropy - 1e-9);
  }
}

TEST(PlaneHistogram, MergesToTheSameAsOne) {
  std::mt19937 random(4);
  std::vector<uint32_t> values(3000);
  for (uint32_t& value : values) value = random() & 0xffc0;
  PlaneHistogram whole(PlaneKind::kFloats, 16), first = whole, second = whole,
                                                none = whole;
  whole.add(values.data(), values.size());
  first.add(values.data(), 1000);
  second.add(values.data() + 1000, 2000);
  first.merge(second);
  first.merge(none);
  EXPECT_EQ(first.bins(), whole.bins());
  EXPECT_EQ(first.total(), 3000u);
  EXPECT_EQ(first.common_bits(), 6);
  EXPECT_EQ(whole.common_bits(), 6);
  none.merge(first);
  EXPECT_EQ(none.common_bits(), 6);
}

// Signed planes have a window around zero; what is outside is an exception.
TEST(PlaneHistogram, SignedWindow) {
  const std::vector<uint32_t> values = {kCorrectionBias, kCorrectionBias + 1,
                                        kCorrectionBias - 1, 0, ~0u};
  PlaneHistogram histogram(PlaneKind::kCorrections, 32);
  histogram.add(values.data(), values.size());
  EXPECT_EQ(histogram.outside(), 2u);
  EXPECT_EQ(histogram.total(), 5u);
}

}  // namespace
}  // namespace mlx_entropy
