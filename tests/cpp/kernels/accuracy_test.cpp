// How exact products are, on every target: the rounding of activations to
// integers, outliers among them, and what is not finite.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "convert/codec_choice.h"
#include "kernels/kernels.h"
#include "kernels/matrix_ops.h"
#include "support/exercise.h"
#include "support/matrices.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;
using testing::Matrix;

constexpr uint32_t kRows = 96, kCols = 512, kGroup = 64;
constexpr size_t kBatches[] = {1, 2, 5, 17, 64};
constexpr double kPromise = 1e-3;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class Accuracy : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(set_target(GetParam()).ok()); }
  void TearDown() override {
    ASSERT_TRUE(set_target(available_targets().front()->name).ok());
  }
};

struct Form {
  const char* name;
  Codec codec;
  std::optional<double> pass_cost;
};
const Form kForms[] = {{"rans", Codec::kRans, std::nullopt},
                       {"tree", Codec::kTree, std::nullopt},
                       {"flat", Codec::kTree, kFlatPassCost}};

// A matrix together with the bytes it points into.
struct Coded {
  Bytes bytes;
  Matrix matrix;

  explicit Coded(testing::AffineMatrix source, const Form& form = kForms[0]) {
    source.point();
    EncodeOptions options = testing::encode_options(16, form.codec);
    options.pass_cost = form.pass_cost;
    bytes = encode_affine(source.arrays, options).value();
    matrix = validate(bytes.data(), bytes.size()).value();
  }
};

// A column of codes whose weights are nearly nothing: -bias / scale, rounded.
testing::AffineMatrix with_light_column(FloatType type, int bits, size_t column,
                                        uint32_t cols = kCols) {
  auto matrix =
      testing::random_affine(9, kRows, cols, bits, kGroup, type, false);
  std::vector<uint8_t> codes(size_t{kRows} * cols);
  std::mt19937 random(10);
  std::normal_distribution<float> normal;
  const int top = (1 << bits) - 1;
  for (size_t i = 0; i < codes.size(); ++i) {
    const float value = (0.5f + normal(random) / 6) * static_cast<float>(top);
    codes[i] = static_cast<uint8_t>(
        std::clamp(std::lround(value), 0L, static_cast<long>(top)));
    if (i % cols == column) codes[i] = static_cast<uint8_t>(top / 2);
  }
  pack_codes(codes.data(), bits, codes.size(),
             reinterpret_cast<uint8_t*>(matrix.codes.data()));
  return matrix;
}

std::vector<float> normal_rows(size_t batch, size_t cols = kCols) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> x(batch * cols);
  for (float& value : x) value = normal(random);
  return x;
}

// The product in double.
std::vector<double> exact_product(const std::vector<float>& weights,
                                  const std::vector<float>& x, size_t cols) {
  const size_t rows = weights.size() / cols;
  std::vector<double> y(x.size() / cols * rows);
  for (size_t i = 0; i < y.size(); ++i) {
    const float* const row = &x[i / rows * cols];
    for (size_t k = 0; k < cols; ++k) {
      y[i] += static_cast<double>(row[k]) *
              static_cast<double>(weights[i % rows * cols + k]);
    }
  }
  return y;
}

double relative_error(const std::vector<float>& y,
                      const std::vector<double>& exact) {
  double error = 0, size = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    error += std::pow(static_cast<double>(y[i]) - exact[i], 2);
    size += std::pow(exact[i], 2);
  }
  return std::sqrt(error / size);
}

double error_of(const PreparedMatrix& matrix, const std::vector<float>& x) {
  const size_t cols = matrix.header().cols;
  return relative_error(testing::product(matrix, x, x.size() / cols),
                        exact_product(testing::dequantized(matrix), x, cols));
}

// Errors of elements are uniform in a step of their group, so their root mean
// square is step / sqrt(12). Integers that were truncated have twice that.
TEST_P(Accuracy, IsThatOfRoundedActivations) {
  const Coded coded(testing::random_affine(3, 256, kCols, 4, kGroup,
                                           FloatType::kFloat32, false));
  const std::vector<float> weights = testing::dequantized(*coded.matrix);
  for (size_t batch : kBatches) {
    // Many rows of x, `batch` at a time.
    double error = 0, expected = 0;
    for (size_t repeat = 0; repeat < 64 / batch + 1; ++repeat) {
      std::vector<float> x = normal_rows(64 + batch);
      x.erase(x.begin(), x.begin() + static_cast<long>(repeat * kCols));
      x.resize(batch * kCols);
      const std::vector<float> y = testing::product(*coded.matrix, x, batch);
      const std::vector<double> exact = exact_product(weights, x, kCols);
      for (size_t i = 0; i < y.size(); ++i) {
        error += std::pow(static_cast<double>(y[i]) - exact[i], 2);
        const float* const row = &x[i / 256 * kCols];
        const float* const w = &weights[i % 256 * kCols];
        for (size_t first = 0; first < kCols; first += kGroup) {
          double largest = 0, squares = 0;
          for (size_t k = first; k < first + kGroup; ++k) {
            largest = std::fmax(largest, std::abs(row[k]));
            squares += std::pow(static_cast<double>(w[k]), 2);
          }
          const double step = largest / kActivationMax;
          expected += step * step / 12 * squares;
        }
      }
    }
    EXPECT_LT(std::sqrt(error / expected), 1.25) << batch;
    EXPECT_GT(std::sqrt(error / expected), 0.8) << batch;
  }
}

TEST_P(Accuracy, HoldsWithAnOutlier) {
  constexpr size_t kColumn = 77;
  for (FloatType type : {FloatType::kFloat32, FloatType::kBfloat16}) {
    for (const Form& form : kForms) {
      const Coded coded(with_light_column(type, 4, kColumn), form);
      const std::vector<float> weights = testing::dequantized(*coded.matrix);
      for (size_t batch : kBatches) {
        for (double peak = 10; peak <= 1e6; peak *= 10) {
          std::vector<float> x = normal_rows(batch);
          for (size_t b = 0; b < batch; b += 2) {
            x[b * kCols + kColumn] = static_cast<float>(b % 4 ? -peak : peak);
          }
          EXPECT_LT(relative_error(testing::product(*coded.matrix, x, batch),
                                   exact_product(weights, x, kCols)),
                    kPromise / 2)
              << form.name << ", batch " << batch << ", peak " << peak;
        }
      }
    }
  }
}

// One group is a whole row here, so that no other hides its errors.
TEST_P(Accuracy, HoldsInTheGroupOfTheOutlier) {
  for (int bits : {2, 8}) {
    const Coded coded(with_light_column(FloatType::kFloat16, bits, 3, kGroup));
    for (size_t batch : {1, 3}) {
      for (double peak = 10; peak <= 1e6; peak *= 3) {
        std::vector<float> x = normal_rows(batch, kGroup);
        for (size_t b = 0; b < batch; ++b) {
          x[b * kGroup + 3] = static_cast<float>(peak);
        }
        EXPECT_LT(error_of(*coded.matrix, x), kPromise)
            << bits << " bits, batch " << batch << ", peak " << peak;
      }
    }
  }
}

TEST_P(Accuracy, HoldsWithManyOutliersOfAllSizes) {
  const Coded coded(testing::random_affine(5, kRows, kCols, 4, kGroup,
                                           FloatType::kFloat16, false));
  const std::vector<float> weights = testing::dequantized(*coded.matrix);
  for (size_t batch : kBatches) {
    std::vector<float> x = normal_rows(batch);
    for (size_t i = 0; i < x.size(); i += 3) {
      x[i] = std::ldexp(8.0f, static_cast<int>(i % 18));
    }
    const std::vector<float> y = testing::product(*coded.matrix, x, batch);
    const std::vector<double> exact = exact_product(weights, x, kCols);
    EXPECT_LT(relative_error(y, exact), 1e-5) << batch;
  }
}

// Down to where float32 itself has no digits left.
TEST_P(Accuracy, HoldsForEverySizeOfX) {
  const Coded coded(testing::random_affine(6, kRows, kCols, 4, kGroup,
                                           FloatType::kFloat32, false));
  for (size_t batch : {1, 5}) {
    for (double size = 1e-30; size < 2e36; size *= 1e3) {
      std::vector<float> x = normal_rows(batch);
      for (float& value : x) value *= static_cast<float>(size);
      EXPECT_LT(error_of(*coded.matrix, x), kPromise / 10)
          << "batch " << batch << ", size " << size;
    }
  }
}

// Each row of W sees one element of x that is no outlier, beside one that is:
// its error is a small part of the median of the group.
TEST_P(Accuracy, HoldsForRowsOfFewWeights) {
  auto matrix = testing::random_affine(4, kGroup, kGroup, 4, kGroup,
                                       FloatType::kFloat32, false);
  std::vector<uint8_t> codes(kGroup * kGroup, 0);
  for (size_t r = 0; r < kGroup; ++r) codes[r * kGroup + r] = 1;
  pack_codes(codes.data(), 4, codes.size(),
             reinterpret_cast<uint8_t*>(matrix.codes.data()));
  std::fill(matrix.biases.begin(), matrix.biases.end(), uint8_t{0});
  const Coded coded(std::move(matrix));
  const std::vector<float> weights = testing::dequantized(*coded.matrix);
  for (size_t batch : {1, 5}) {
    for (double peak : {10.0, 1e3, 1e6, 1e30}) {
      std::vector<float> x = normal_rows(batch, kGroup);
      for (size_t b = 0; b < batch; ++b) {
        x[b * kGroup] = static_cast<float>(peak);
      }
      const std::vector<float> y = testing::product(*coded.matrix, x, batch);
      const std::vector<double> exact = exact_product(weights, x, kGroup);
      for (size_t i = 0; i < y.size(); ++i) {
        const double median = 0.6745 * std::abs(weights[i % kGroup * 65]);
        EXPECT_NEAR(y[i], exact[i],
                    kPromise * median + 1e-6 * std::abs(exact[i]))
            << "batch " << batch << ", peak " << peak << ", " << i;
      }
    }
  }
}

// What is not finite is where a sum of float products has it.
void expect_same_kinds(const Coded& coded, const std::vector<float>& x) {
  const size_t cols = coded.matrix->header().cols;
  const std::vector<float> y =
      testing::product(*coded.matrix, x, x.size() / cols);
  const std::vector<double> exact =
      exact_product(testing::dequantized(*coded.matrix), x, cols);
  for (size_t i = 0; i < y.size(); ++i) {
    const auto right = static_cast<float>(exact[i]);
    EXPECT_EQ(std::isnan(y[i]), std::isnan(right)) << i;
    EXPECT_EQ(std::isinf(y[i]), std::isinf(right)) << i;
    if (std::isfinite(right)) {
      EXPECT_NEAR(y[i], right, 1e-3 * (1 + std::abs(right))) << i;
    } else if (std::isinf(right)) {
      EXPECT_EQ(y[i], right) << i;
    }
  }
}

TEST_P(Accuracy, InfiniteScalesAndBiasesAreWhereFloatsHaveThem) {
  for (FloatType type : {FloatType::kFloat32, FloatType::kFloat16}) {
    for (bool of_biases : {false, true}) {
      for (float value : {kInfinity, -kInfinity, std::nanf("")}) {
        auto matrix =
            testing::random_affine(7, kRows, kCols, 4, kGroup, type, false);
        const uint32_t bits = from_float(type, value);
        const size_t width = static_cast<size_t>(bit_width(type)) / 8;
        Bytes& array = of_biases ? matrix.biases : matrix.scales;
        for (size_t group : {0u, 100u, 700u}) {
          std::memcpy(&array[group * width], &bits, width);
        }
        const Coded coded(std::move(matrix));
        for (size_t batch : kBatches) {
          std::vector<float> x = normal_rows(batch);
          expect_same_kinds(coded, x);
          for (float& each : x) each = std::abs(each);
          expect_same_kinds(coded, x);
        }
      }
    }
  }
}

TEST_P(Accuracy, InfiniteActivationsAreWhereFloatsHaveThem) {
  const Coded coded(testing::random_affine(8, kRows, kCols, 4, kGroup,
                                           FloatType::kFloat16, false));
  for (size_t batch : kBatches) {
    std::vector<float> x = normal_rows(batch);
    x[5] = kInfinity;
    expect_same_kinds(coded, x);
    x[6] = -kInfinity;
    x[7] = 1e6f;
    expect_same_kinds(coded, x);
    x[8] = std::nanf("");
    expect_same_kinds(coded, x);
  }
}

// Sums of integers times a scale may be beyond float32 where the product is
// not.
TEST_P(Accuracy, LargeActivationsDoNotOverflow) {
  const Coded coded(testing::random_affine(8, kRows, kCols, 4, kGroup,
                                           FloatType::kFloat16, false));
  for (size_t batch : {1, 5}) {
    std::vector<float> x = normal_rows(batch);
    for (float& each : x) each = std::copysign(3e38f, each);
    x[1] = 2e38f;
    expect_same_kinds(coded, x);
  }
}

// Experts and matrices with one input take the same way.
TEST_P(Accuracy, HoldsInBlocksAndSharedProducts) {
  const Coded coded(with_light_column(FloatType::kFloat16, 4, 70));
  const std::vector<float> weights = testing::dequantized(*coded.matrix);
  std::vector<float> x = normal_rows(6);
  for (size_t b = 0; b < 6; ++b) x[b * kCols + 70] = 1e6f;
  const std::vector<double> exact = exact_product(weights, x, kCols);

  std::vector<float> first(6 * kRows), second(6 * kRows);
  const PreparedMatrix* const matrices[] = {coded.matrix.get(),
                                            coded.matrix.get()};
  float* const results[] = {first.data(), second.data()};
  multiply_shared(matrices, x.data(), 6, kCols, results);
  EXPECT_LT(relative_error(first, exact), kPromise / 2);
  EXPECT_EQ(first, second);

  const uint32_t blocks[] = {2, 0, 5, 2, 1, 2};
  std::vector<float> y(6 * 16);
  std::vector<double> wanted;
  for (size_t b = 0; b < 6; ++b) {
    const auto from =
        exact.begin() + static_cast<long>(b * kRows + blocks[b] * 16);
    wanted.insert(wanted.end(), from, from + 16);
  }
  multiply_blocks(*coded.matrix, 16, blocks, {FloatType::kFloat32, x.data()},
                  {FloatType::kFloat32, y.data()});
  EXPECT_LT(relative_error(y, wanted), kPromise / 2);
}

std::vector<std::string> names() {
  std::vector<std::string> names;
  for (const KernelTable* target : available_targets()) {
    names.emplace_back(target->name);
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, Accuracy, ::testing::ValuesIn(names()),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace mlx_entropy
