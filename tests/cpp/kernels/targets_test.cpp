// Every target against the scalar one, and exact round trips on each.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/matrix_ops.h"
#include "support/exercise.h"
#include "support/matrices.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;

constexpr FloatType kFloatTypes[] = {FloatType::kFloat32, FloatType::kFloat16,
                                     FloatType::kBfloat16};
constexpr Codec kCodecs[] = {Codec::kRans, Codec::kTree};

class Targets : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(set_target(GetParam()).ok()); }
  void TearDown() override {
    ASSERT_TRUE(set_target(available_targets().front()->name).ok());
  }
};

Bytes append(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Exact arrays, the same for a range of rows, and products.
void expect_matrix(const Bytes& coded, const Bytes& arrays) {
  const auto result = validate(coded.data(), coded.size());
  ASSERT_TRUE(result.ok()) << result.status().message();
  const PreparedMatrix& matrix = *result.value();
  EXPECT_EQ(testing::decode_all(matrix), arrays);
  if (matrix.header().scheme != Scheme::kSymbols) {
    EXPECT_EQ(testing::check_products(matrix), "");
  }
}

TEST_P(Targets, IsTheOneThatRuns) {
  EXPECT_EQ(active_target().name, GetParam());
}

TEST_P(Targets, Affine) {
  uint32_t seed = 0;
  for (FloatType type : kFloatTypes) {
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      for (uint32_t group : {32u, 64u, 128u}) {
        const bool wild_biases = ++seed % 4 == 0;
        auto matrix = testing::random_affine(seed, 11, 384, bits, group, type,
                                             wild_biases);
        Bytes arrays(matrix.codes.size() * 4);
        std::memcpy(arrays.data(), matrix.codes.data(), arrays.size());
        arrays = append(append(arrays, matrix.scales), matrix.biases);
        for (Codec codec : kCodecs) {
          expect_matrix(testing::encode(&matrix, seed % 5, codec), arrays);
        }
      }
    }
  }
}

// Up to nine equal tiles, so that every number of lockstep streams occurs.
TEST_P(Targets, LockstepStreams) {
  for (uint32_t rows = 1; rows <= 19; ++rows) {
    auto matrix = testing::random_affine(rows, rows, 64, 4, 32,
                                         FloatType::kFloat16, false);
    const Bytes coded = testing::encode(&matrix, 2);
    const auto result = validate(coded.data(), coded.size());
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(testing::check_products(*result.value()), "") << rows;
  }
}

TEST_P(Targets, Floats) {
  uint32_t seed = 100;
  for (FloatType type : kFloatTypes) {
    for (uint32_t cols : {1u, 7u, 63u, 64u, 65u, 200u}) {
      for (uint32_t rows : {1u, 2u, 65u}) {
        const auto matrix = testing::random_floats(++seed, rows, cols, type);
        for (Codec codec : kCodecs) {
          expect_matrix(testing::encode(matrix, seed % 3, codec),
                        matrix.values);
        }
      }
    }
  }
}

TEST_P(Targets, Symbols) {
  uint32_t seed = 200;
  for (int alphabet : {1, 2, 3, 16, 17, 100, 256}) {
    for (double ratio : {1.0, 0.9, 0.5, 0.01}) {
      for (uint32_t cols : {1u, 64u, 333u}) {
        const Bytes symbols =
            testing::random_symbols(++seed, 70 * cols, alphabet, ratio);
        for (Codec codec : kCodecs) {
          expect_matrix(
              testing::encode_symbols(symbols, 70, cols, seed % 3, codec),
              symbols);
        }
      }
    }
  }
}

// Constant planes are all base and shift, up to the full width of a value.
TEST_P(Targets, ConstantPlanes) {
  for (FloatType type : kFloatTypes) {
    for (uint32_t bits : {0u, 0x8000u, 0x3c00u, 0xffffu}) {
      const uint32_t pattern = bit_width(type) == 32 ? bits << 16 : bits;
      testing::FloatMatrix matrix{
          type, 9, 40,
          testing::pack_floats(type, std::vector<uint32_t>(360, pattern))};
      const Bytes coded = testing::encode(matrix, 0);
      const auto result = validate(coded.data(), coded.size());
      ASSERT_TRUE(result.ok());
      EXPECT_EQ(testing::decode_all(*result.value()), matrix.values);
    }
  }
}

TEST_P(Targets, SeveralCallersAtOnce) {
  auto matrix =
      testing::random_affine(1, 64, 256, 4, 64, FloatType::kFloat16, false);
  const Bytes coded = testing::encode(&matrix, 4);
  const auto result = validate(coded.data(), coded.size());
  ASSERT_TRUE(result.ok());
  const Bytes expected = testing::decode_all(*result.value());
  const std::vector<float> x = testing::test_vector(256);
  const std::vector<float> y = testing::product(*result.value(), x, 1);
  ThreadPool::instance().resize(3);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 10; ++round) {
        const auto again = validate(coded.data(), coded.size());
        ASSERT_TRUE(again.ok());
        EXPECT_EQ(testing::decode_all(*again.value()), expected);
        EXPECT_EQ(testing::product(*again.value(), x, 1), y);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  ThreadPool::instance().resize(0);
}

std::vector<std::string> names() {
  std::vector<std::string> names;
  for (const KernelTable* target : available_targets()) {
    names.emplace_back(target->name);
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, Targets, ::testing::ValuesIn(names()),
                         [](const auto& tested) { return tested.param; });

TEST(Dispatch, ScalarIsAlwaysThereAndUnknownTargetsAreNot) {
  EXPECT_EQ(names().back(), "scalar");
  const Status status = set_target("abacus");
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("abacus"), std::string::npos);
  EXPECT_NE(status.message().find("scalar"), std::string::npos);
}

}  // namespace
}  // namespace mlx_entropy
