#include "convert/transcode.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "format/container.h"
#include "kernels/matrix_ops.h"
#include "support/exercise.h"
#include "support/matrices.h"
#include "support/trees.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;

std::shared_ptr<const PreparedMatrix> open(const Bytes& bytes) {
  auto result = validate(bytes.data(), bytes.size());
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? result.value() : nullptr;
}

Bytes transcoded(const Bytes& bytes, const EncodeOptions& options) {
  const auto matrix = open(bytes);
  if (matrix == nullptr) return {};
  Bytes out;
  const Status status = Transcoder(*matrix).encode(options, memory_of(&out));
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

EncodeOptions to(Codec codec, std::optional<double> pass_cost = {}) {
  EncodeOptions options;
  options.codec = codec;
  options.pass_cost = pass_cost;
  return options;
}

// The same arrays with every tree, and the same bytes back in the first codec.
void expect_round_trip(const Bytes& rans) {
  const auto matrix = open(rans);
  ASSERT_NE(matrix, nullptr);
  const MatrixHeader& header = matrix->header();
  const Bytes arrays = testing::decode_all(*matrix);
  for (std::optional<double> pass_cost :
       {std::optional<double>(), std::optional(0.0), std::optional(0.5)}) {
    const Bytes tree = transcoded(rans, to(Codec::kTree, pass_cost));
    const auto same = open(tree);
    ASSERT_NE(same, nullptr);
    EXPECT_EQ(same->header().coder, Coder::kTree);
    EXPECT_EQ(same->header().scheme, header.scheme);
    EXPECT_EQ(same->header().tile_rows, header.tile_rows);
    EXPECT_EQ(same->header().planes.size(), header.planes.size());
    for (size_t p = 0; p + 1 < same->header().planes.size(); ++p) {
      EXPECT_FALSE(same->header().planes[p].coded());
    }
    EXPECT_EQ(testing::decode_all(*same), arrays);
    EXPECT_EQ(transcoded(tree, to(Codec::kTree, pass_cost)), tree);
    EXPECT_EQ(transcoded(tree, to(Codec::kRans)), rans);
  }
}

TEST(Transcode, Affine) {
  uint32_t seed = 0;
  for (FloatType type :
       {FloatType::kFloat32, FloatType::kFloat16, FloatType::kBfloat16}) {
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      for (bool wild : {false, true}) {
        const uint32_t group = 32u << seed % 3;
        ++seed;
        auto matrix = testing::random_affine(seed, 1 + seed % 13, 384, bits,
                                             group, type, wild);
        expect_round_trip(testing::encode(&matrix, seed % 4));
      }
    }
  }
}

TEST(Transcode, Floats) {
  uint32_t seed = 100;
  for (FloatType type :
       {FloatType::kFloat32, FloatType::kFloat16, FloatType::kBfloat16}) {
    for (uint32_t cols : {1u, 50u, 64u, 333u}) {
      const auto matrix = testing::random_floats(++seed, 70, cols, type);
      expect_round_trip(testing::encode(matrix, seed % 3));
    }
  }
}

TEST(Transcode, Symbols) {
  uint32_t seed = 200;
  for (int alphabet : {1, 2, 5, 16, 100, 256}) {
    for (double ratio : {1.0, 0.8, 0.1}) {
      for (uint32_t cols : {1u, 64u, 129u}) {
        Bytes symbols =
            testing::random_symbols(++seed, 130 * cols, alphabet, ratio);
        symbols[seed % symbols.size()] = 255;
        expect_round_trip(
            testing::encode_symbols(symbols, 130, cols, seed % 3));
      }
    }
  }
}

// Trees that the encoder would not plan: the arrays are what counts.
TEST(Transcode, AnyTree) {
  std::mt19937 random(1);
  for (int round = 0; round < 50; ++round) {
    const Tree tree =
        testing::RandomTree(&random, 200, 3, testing::TreeShape::kAny)
            .make(random() % 20);
    if (tree.empty()) continue;
    const Bytes symbols =
        testing::random_tree_values(&random, tree, 40 * 96, 10);
    const Bytes coded =
        testing::encode_with_tree(tree, 200, symbols, 40, 96, 10);
    for (Codec codec : {Codec::kRans, Codec::kTree}) {
      const Bytes other = transcoded(coded, to(codec));
      const auto matrix = open(other);
      ASSERT_NE(matrix, nullptr);
      EXPECT_EQ(testing::decode_all(*matrix), symbols);
      EXPECT_EQ(matrix->header().tile_rows, 10u);
    }
  }
}

TEST(Transcode, TilesAndBlocksCanBeAskedFor) {
  auto matrix =
      testing::random_affine(1, 48, 64, 4, 32, FloatType::kFloat16, false);
  const Bytes rans = testing::encode(&matrix, 48);
  EncodeOptions options = to(Codec::kTree);
  options.block_rows = 12;
  const Bytes in_blocks = transcoded(rans, options);
  const auto blocks = open(in_blocks);
  ASSERT_NE(blocks, nullptr);
  EXPECT_EQ(12 % blocks->header().tile_rows, 0u);
  options.block_rows = 0;
  options.tile_rows = 7;
  const Bytes in_tiles = transcoded(rans, options);
  const auto tiles = open(in_tiles);
  ASSERT_NE(tiles, nullptr);
  EXPECT_EQ(tiles->header().tile_rows, 7u);
  EXPECT_EQ(testing::decode_all(*tiles), testing::decode_all(*open(rans)));
}

// Both codecs of one matrix are near its entropy, each in its way.
TEST(Transcode, SizesAreClose) {
  auto matrix =
      testing::random_affine(2, 128, 1024, 4, 64, FloatType::kBfloat16, false);
  const Bytes rans = testing::encode(&matrix, 0);
  const Bytes tree = transcoded(rans, to(Codec::kTree));
  EXPECT_GT(tree.size(), rans.size());
  EXPECT_LT(static_cast<double>(tree.size()),
            1.12 * static_cast<double>(rans.size()));
}

}  // namespace
}  // namespace mlx_entropy
