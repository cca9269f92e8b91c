// Products of several matrices with the same x, against one at a time.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/matrix_ops.h"
#include "support/matrices.h"

namespace mlx_entropy {
namespace {

TEST(SharedProducts, AreThoseOfEachMatrix) {
  constexpr size_t kCols = 64;
  auto affine =
      testing::random_affine(1, 33, kCols, 4, 32, FloatType::kFloat16, false);
  const std::vector<testing::Bytes> coded = {
      testing::encode(&affine, 2),
      testing::encode(testing::random_floats(2, 7, kCols, FloatType::kBfloat16),
                      0),
      testing::encode(testing::random_floats(3, 1, kCols, FloatType::kFloat32),
                      0)};
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const KernelTable* target : available_targets()) {
    ASSERT_TRUE(set_target(target->name).ok());
    for (size_t batch : {1, 2, 17, 40}) {
      std::vector<float> x(batch * kCols);
      for (float& value : x) value = normal(random);
      std::vector<std::shared_ptr<const PreparedMatrix>> matrices;
      std::vector<const PreparedMatrix*> pointers;
      std::vector<std::vector<float>> results;
      std::vector<float*> y;
      for (const testing::Bytes& bytes : coded) {
        matrices.push_back(validate(bytes.data(), bytes.size()).value());
        pointers.push_back(matrices.back().get());
        results.emplace_back(batch * pointers.back()->header().rows);
        y.push_back(results.back().data());
      }
      multiply_shared(pointers, x.data(), batch, kCols, y);
      for (size_t i = 0; i < matrices.size(); ++i) {
        std::vector<float> expected(results[i].size());
        multiply(*matrices[i], {FloatType::kFloat32, x.data()}, batch,
                 {FloatType::kFloat32, expected.data()});
        for (size_t k = 0; k < expected.size(); ++k) {
          EXPECT_NEAR(results[i][k], expected[k],
                      1e-4 * (1 + std::fabs(expected[k])));
        }
      }
    }
  }
  ASSERT_TRUE(set_target(available_targets().front()->name).ok());
}

}  // namespace
}  // namespace mlx_entropy
