#include "convert/encode_matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "format/container.h"
#include "kernels/matrix_ops.h"
#include "support/exercise.h"
#include "support/matrices.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;

std::shared_ptr<const PreparedMatrix> open(const Bytes& bytes) {
  auto result = validate(bytes.data(), bytes.size());
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? result.value() : nullptr;
}

TEST(EncodeMatrix, TilesStartOnAStep) {
  for (uint32_t cols : {1u, 3u, 48u, 64u, 100u}) {
    for (uint32_t wanted : {0u, 1u, 2u, 5u, 1000u}) {
      const Bytes symbols = testing::random_symbols(1, 90 * cols, 5, 0.6);
      const Bytes bytes = testing::encode_symbols(symbols, 90, cols, wanted);
      const auto matrix = open(bytes);
      ASSERT_NE(matrix, nullptr);
      const MatrixHeader& header = matrix->header();
      if (header.tiles > 1) {
        EXPECT_EQ(header.tile_rows % row_unit(cols), 0u);
        EXPECT_GE(header.tile_rows, wanted);
      }
      EXPECT_EQ(testing::decode_all(*matrix), symbols);
    }
  }
}

TEST(EncodeMatrix, SameBytesForAnyNumberOfThreads) {
  const auto matrix = testing::random_floats(1, 40, 96, FloatType::kBfloat16);
  ThreadPool::instance().resize(1);
  const Bytes one = testing::encode(matrix, 2);
  ThreadPool::instance().resize(3);
  EXPECT_EQ(testing::encode(matrix, 2), one);
  ThreadPool::instance().resize(0);
}

TEST(EncodeMatrix, EmptyAndTooLargeAreErrors) {
  const uint8_t symbol = 0;
  EXPECT_FALSE(encode_matrix(SymbolSource(&symbol, 0, 4), {}).ok());
  EXPECT_FALSE(encode_matrix(SymbolSource(&symbol, 4, 0), {}).ok());
  EXPECT_FALSE(encode_matrix(SymbolSource(&symbol, 1, 1u << 27), {}).ok());
  EXPECT_FALSE(encode_matrix(SymbolSource(&symbol, ~0u, ~0u), {}).ok());
}

TEST(EncodeMatrix, GivenFrequenciesMakeEscapes) {
  const Bytes symbols = {0, 1, 2, 200, 0, 0, 1, 9};
  EncodeOptions options;
  options.frequencies = {{200, 56}};
  const auto bytes = encode_matrix(SymbolSource(symbols.data(), 2, 4), options);
  ASSERT_TRUE(bytes.ok());
  const auto matrix = open(bytes.value());
  ASSERT_NE(matrix, nullptr);
  EXPECT_EQ(matrix->container().exceptions(0), 3u);
  EXPECT_EQ(testing::decode_all(*matrix), symbols);
}

TEST(EncodeMatrix, OneCertainSymbolNeedsNoStream) {
  const Bytes symbols = {5, 5, 5, 0, 5, 5};
  EncodeOptions options;
  options.frequencies = {{0, 0, 0, 0, 0, 256, 0}};
  const auto bytes = encode_matrix(SymbolSource(symbols.data(), 1, 6), options);
  ASSERT_TRUE(bytes.ok());
  const auto matrix = open(bytes.value());
  ASSERT_NE(matrix, nullptr);
  EXPECT_FALSE(matrix->header().any_coded());
  EXPECT_EQ(matrix->container().exceptions(0), 1u);
  EXPECT_EQ(testing::decode_all(*matrix), symbols);
}

size_t planes_of(testing::AffineMatrix* matrix) {
  const Bytes bytes = testing::encode(matrix, 0);
  return open(bytes)->header().planes.size();
}

TEST(EncodeAffine, PredictsBiasesWhenThatIsSmaller) {
  auto related =
      testing::random_affine(1, 64, 512, 4, 32, FloatType::kFloat16, false);
  auto unrelated =
      testing::random_affine(2, 64, 512, 4, 32, FloatType::kFloat16, true);
  EXPECT_EQ(planes_of(&related), 4u);
  EXPECT_EQ(planes_of(&unrelated), 3u);
}

uint32_t bits_of(FloatType type, float value) {
  return from_float(type, value);
}

// Scales and biases of every special kind, each with each.
TEST(EncodeAffine, SpecialValuesAreExact) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (FloatType type :
       {FloatType::kFloat32, FloatType::kFloat16, FloatType::kBfloat16}) {
    std::vector<uint32_t> special;
    for (float value : {0.0f, 1.0f, 0.37f, 6e4f, 1e-6f, 1e-30f, inf, nan}) {
      special.push_back(bits_of(type, value));
      special.push_back(bits_of(type, -value));
    }
    special.push_back(1);  // smallest subnormal
    special.push_back(bit_width(type) == 32 ? 0x7fa00001 : 0x7fa1);
    const auto n = static_cast<uint32_t>(special.size());
    auto matrix = testing::random_affine(1, n, 32 * n, 4, 32, type, false);
    std::vector<uint32_t> scales, biases;
    for (uint32_t scale : special) {
      for (uint32_t bias : special) {
        scales.push_back(scale);
        biases.push_back(bias);
      }
    }
    matrix.scales = testing::pack_floats(type, scales);
    matrix.biases = testing::pack_floats(type, biases);
    matrix.point();
    for (BiasMode mode : {BiasMode::kPredicted, BiasMode::kStored}) {
      const auto bytes =
          encode_matrix(AffineSource(matrix.arrays, mode), EncodeOptions{});
      ASSERT_TRUE(bytes.ok());
      const auto coded = open(bytes.value());
      ASSERT_NE(coded, nullptr);
      const Bytes arrays = testing::decode_all(*coded);
      const size_t at = matrix.codes.size() * 4;
      EXPECT_TRUE(std::equal(matrix.scales.begin(), matrix.scales.end(),
                             arrays.begin() + static_cast<long>(at)));
      EXPECT_TRUE(std::equal(
          matrix.biases.begin(), matrix.biases.end(),
          arrays.begin() + static_cast<long>(at + matrix.scales.size())));
    }
  }
}

TEST(TableFromCounts, DropsWhatAnEscapeCodesCheaper) {
  EXPECT_EQ(table_from_counts(std::vector<uint64_t>{1000000, 1})[1], 0);
  EXPECT_GT(table_from_counts(std::vector<uint64_t>{1000, 1})[1], 0);
  std::vector<uint64_t> wide(256, 1);
  wide[9] = uint64_t{1} << 40;
  const auto frequencies = table_from_counts(wide);
  EXPECT_EQ(frequencies.size(), 256u);
  EXPECT_EQ(frequencies[9], 4096);
}

}  // namespace
}  // namespace mlx_entropy
