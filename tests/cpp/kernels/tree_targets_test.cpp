// Blocks of any tree on every target.
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/matrix_ops.h"
#include "support/exercise.h"
#include "support/trees.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;
using testing::RandomTree;
using testing::TreeShape;

class TreeTargets : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(set_target(GetParam()).ok()); }
  void TearDown() override {
    ASSERT_TRUE(set_target(available_targets().front()->name).ok());
  }
};

void expect_symbols(const Bytes& coded, const Bytes& symbols) {
  const auto result = validate(coded.data(), coded.size());
  ASSERT_TRUE(result.ok()) << result.status().message();
  ASSERT_EQ(testing::decode_all(*result.value()), symbols);
  // From the middle of a block, and up to it.
  const uint32_t rows = result.value()->header().rows;
  const size_t cols = result.value()->header().cols;
  const auto cut = symbols.begin() + static_cast<ptrdiff_t>(rows / 2 * cols);
  EXPECT_EQ(testing::decode_rows(*result.value(), {0, rows / 2}),
            Bytes(symbols.begin(), cut));
  EXPECT_EQ(testing::decode_rows(*result.value(), {rows / 2, rows}),
            Bytes(cut, symbols.end()));
}

TEST_P(TreeTargets, AnyTreeAndCount) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const size_t classes = 2 + random() % 255;
    const auto shape = static_cast<TreeShape>(random() % 3);
    const size_t merges = random() % 2 == 0 ? random() % 5 : random() % 33;
    const Tree tree =
        RandomTree(&random, classes, round % 9, shape).make(merges);
    ASSERT_FALSE(tree.empty());
    const auto cols = static_cast<uint32_t>(1 + random() % 200);
    const auto rows = static_cast<uint32_t>(1 + random() % 70);
    const double spread = std::vector{0.01, 1.0, 5.0, 100.0}[random() % 4];
    const Bytes symbols =
        testing::random_tree_values(&random, tree, size_t{rows} * cols, spread);
    const uint32_t unit = row_unit(cols);
    const uint32_t tile_rows =
        round % 2 == 0 ? rows : unit * static_cast<uint32_t>(1 + random() % 3);
    expect_symbols(
        testing::encode_with_tree(tree, static_cast<uint32_t>(classes), symbols,
                                  rows, cols, tile_rows),
        symbols);
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
}

// Every count of a block up to some whole steps.
TEST_P(TreeTargets, EveryCount) {
  std::mt19937 random(2);
  for (uint32_t count = 1; count <= 200; ++count) {
    const Tree tree = RandomTree(&random, 64, 4, TreeShape::kAny).make(6);
    const Bytes symbols = testing::random_tree_values(&random, tree, count, 10);
    expect_symbols(testing::encode_with_tree(tree, 64, symbols, 1, count, 1),
                   symbols);
    expect_symbols(
        testing::encode_with_tree(tree, 64, symbols, count, 1, count), symbols);
  }
}

// One class of 33 in each leaf of a tree as high as it may be.
Tree chain(TreeShape shape) {
  Tree tree;
  const int n = kMaxTreeHeight;
  for (int i = 0; i < n; ++i) {
    tree.add(kMerge);
    if (shape == TreeShape::kRight) tree.add(0);
  }
  for (int i = shape == TreeShape::kRight ? n : 0; i <= n; ++i) tree.add(0);
  tree.symbols.resize(static_cast<size_t>(n) + 1);
  std::iota(tree.symbols.begin(), tree.symbols.end(), uint8_t{0});
  EXPECT_TRUE(tree.link());
  return tree;
}

// All values pass all merges of the highest tree, some or none at each leave
// to the other side: nodes need the most room then.
TEST_P(TreeTargets, HighestTrees) {
  for (TreeShape shape : {TreeShape::kLeft, TreeShape::kRight}) {
    const Tree tree = chain(shape);
    for (uint32_t stray : {0u, 1u, 2u, 63u, 64u, 65u}) {
      for (uint32_t cols : {1u, 64u, 4096u, 5000u}) {
        const uint32_t rows = row_unit(cols);
        const uint8_t deepest = shape == TreeShape::kRight ? 32 : 0;
        Bytes symbols(size_t{rows} * cols, deepest);
        for (size_t i = 0; i < 32 * size_t{stray} && i < symbols.size(); ++i) {
          symbols[i] = static_cast<uint8_t>(
              shape == TreeShape::kRight ? i % 32 : 1 + i % 32);
        }
        expect_symbols(
            testing::encode_with_tree(tree, 33, symbols, rows, cols, rows),
            symbols);
      }
    }
  }
}

// Unused bits mean nothing.
TEST_P(TreeTargets, UnusedBitsAreIgnored) {
  Tree tree;
  tree.add(kMerge);
  tree.add(0);
  tree.add(1);
  tree.symbols = {5, 7, 9};
  ASSERT_TRUE(tree.link());
  const Bytes symbols = {5, 7, 5, 9, 9};
  Bytes coded = testing::encode_with_tree(tree, 10, symbols, 1, 5, 1);
  const auto container = Container::parse(coded.data(), coded.size()).value();
  const Tile tile = container.tile(0);
  ASSERT_EQ(tile.stream_end - tile.stream, 2);
  const auto at = static_cast<size_t>(tile.stream - coded.data());
  EXPECT_EQ(coded[at], 0b11010);
  EXPECT_EQ(coded[at + 1], 0b110);
  coded[at] |= 0xe0;
  coded[at + 1] |= 0xf8;
  testing::fix_checksum(&coded);
  expect_symbols(coded, symbols);
}

std::vector<std::string> names() {
  std::vector<std::string> names;
  for (const KernelTable* target : available_targets()) {
    names.emplace_back(target->name);
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, TreeTargets, ::testing::ValuesIn(names()),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace mlx_entropy
