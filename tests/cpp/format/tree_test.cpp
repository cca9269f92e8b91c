#include "format/tree.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "format/container.h"
#include "support/bytes.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;

Bytes stored(const Bytes& nodes, const Bytes& symbols) {
  Bytes bytes(2);
  store(bytes.data(), static_cast<uint16_t>(nodes.size()));
  bytes.insert(bytes.end(), nodes.begin(), nodes.end());
  bytes.insert(bytes.end(), symbols.begin(), symbols.end());
  return bytes;
}

bool parses(const Bytes& bytes, size_t classes = 256) {
  // Without room after the end, for the address sanitizer.
  const Bytes tight = testing::tight_copy(bytes.data(), bytes.size());
  return Tree::parse(tight.data(), tight.size(), classes).ok();
}

bool parses(const Bytes& nodes, const Bytes& symbols, size_t classes = 256) {
  return parses(stored(nodes, symbols), classes);
}

TEST(Tree, NodesKnowTheirChildrenAndSymbols) {
  const Bytes bytes = stored({kMerge, kMerge, 0, 2, 1}, {9, 1, 2, 3, 4, 5, 9});
  const auto result = Tree::parse(bytes.data(), bytes.size(), 10);
  ASSERT_TRUE(result.ok()) << result.status().message();
  const Tree& tree = result.value();
  ASSERT_EQ(tree.nodes.size(), 5u);
  EXPECT_EQ(tree.nodes[0].right, 4);
  EXPECT_EQ(tree.nodes[1].right, 3);
  EXPECT_EQ(tree.nodes[2].symbols, 0);
  EXPECT_EQ(tree.nodes[3].symbols, 1);
  EXPECT_EQ(tree.nodes[4].symbols, 5);
  EXPECT_EQ(tree.symbols, (Bytes{9, 1, 2, 3, 4, 5, 9}));
  EXPECT_EQ(tree.stored_bytes(), bytes.size());
}

TEST(Tree, BytesAfterTheTreeAreNotItsOwn) {
  Bytes bytes = stored({0}, {3});
  bytes.resize(100, 255);
  const auto result = Tree::parse(bytes.data(), bytes.size(), 4);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result.value().stored_bytes(), 4u);
}

TEST(Tree, RefusesWhatIsNotOneTree) {
  EXPECT_FALSE(parses({}, {}));
  EXPECT_FALSE(parses({kMerge}, {}));
  EXPECT_FALSE(parses({kMerge, 0}, {1}));
  EXPECT_FALSE(parses({0, 0}, {1, 2}));
  EXPECT_FALSE(parses({kMerge, 0, 0, 0}, {1, 2, 3}));
  EXPECT_FALSE(parses({kMerge, kMerge, 0, 0}, {1, 2}));
  EXPECT_TRUE(parses({kMerge, 0, 0}, {1, 2}));
}

TEST(Tree, DepthsEndAtEight) {
  for (int depth = 0; depth <= 254; ++depth) {
    const Bytes symbols(depth < 9 ? size_t{1} << depth : 2048, 7);
    EXPECT_EQ(parses({static_cast<uint8_t>(depth)}, symbols), depth <= 8)
        << depth;
  }
}

TEST(Tree, RefusesClassesBeyondTheLast) {
  EXPECT_TRUE(parses({1}, {0, 1}, 2));
  EXPECT_FALSE(parses({1}, {0, 2}, 2));
  EXPECT_FALSE(parses({1}, {255, 0}, 255));
}

TEST(Tree, RefusesMoreThan511Nodes) {
  // A balanced tree, so that it is not refused for its height.
  const auto nodes = [](size_t leaves) {
    const auto add = [](auto&& self, size_t n, Bytes* out) -> void {
      out->push_back(n == 1 ? 0 : kMerge);
      if (n == 1) return;
      self(self, n / 2, out);
      self(self, n - n / 2, out);
    };
    Bytes out;
    add(add, leaves, &out);
    return out;
  };
  EXPECT_TRUE(parses(nodes(256), Bytes(256, 1)));
  EXPECT_FALSE(parses(nodes(257), Bytes(257, 1)));
  Bytes bytes = stored(nodes(256), Bytes(256, 1));
  for (uint16_t count : {0, 509, 510, 512, 513, 0x8000, 0xffff}) {
    store(bytes.data(), count);
    EXPECT_FALSE(parses(bytes)) << count;
  }
}

TEST(Tree, RefusesMoreThan1024Symbols) {
  EXPECT_TRUE(parses({kMerge, kMerge, 8, 8, kMerge, 8, 8}, Bytes(1024, 1)));
  EXPECT_FALSE(
      parses({kMerge, kMerge, 8, 8, kMerge, 8, kMerge, 8, 0}, Bytes(1025, 1)));
}

TEST(Tree, RefusesMoreThan32MergesAboveOneAnother) {
  for (bool left : {false, true}) {
    for (size_t merges : {31u, 32u, 33u, 34u, 200u}) {
      Bytes nodes;
      for (size_t i = 0; i < merges; ++i) {
        nodes.push_back(kMerge);
        if (!left) nodes.push_back(0);
      }
      nodes.resize(2 * merges + 1, 0);
      EXPECT_EQ(parses(nodes, Bytes(merges + 1, 1)), merges <= 32) << merges;
    }
  }
}

TEST(Tree, RefusesEveryTruncation) {
  const Bytes bytes = stored({kMerge, kMerge, 0, 2, 1}, {9, 1, 2, 3, 4, 5, 9});
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(parses(testing::tight_copy(bytes.data(), size))) << size;
  }
}

// Random bytes are trees or refused; those that are have all their limits.
TEST(Tree, HostileBytes) {
  std::mt19937 random(1);
  const uint8_t likely[] = {kMerge, kMerge, 0, 0, 1, 2, 8};
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes bytes(random() % 80);
    for (uint8_t& byte : bytes) {
      byte = random() % 16 == 0 ? static_cast<uint8_t>(random())
                                : likely[random() % 7];
    }
    if (bytes.size() >= 2) {
      store(bytes.data(), static_cast<uint16_t>(random() % 40));
    }
    const size_t classes = 1 + random() % 256;
    const auto result = Tree::parse(bytes.data(), bytes.size(), classes);
    if (!result.ok()) continue;
    ++accepted;
    const Tree& tree = result.value();
    ASSERT_LE(tree.stored_bytes(), bytes.size());
    for (size_t i = 0; i < tree.nodes.size(); ++i) {
      const TreeNode& node = tree.nodes[i];
      if (node.depth == kMerge) {
        ASSERT_GT(node.right, i + 1);
        ASSERT_LT(node.right, tree.nodes.size());
      } else {
        ASSERT_LE(node.symbols + (size_t{1} << node.depth),
                  tree.symbols.size());
      }
    }
    for (uint8_t symbol : tree.symbols) ASSERT_LT(symbol, classes);
  }
  EXPECT_GT(accepted, 50);
}

TEST(Tree, BlocksAreWholeSteps) {
  for (uint32_t cols : {1u, 7u, 32u, 48u, 64u, 100u, 4096u, 5000u, 1u << 26}) {
    const uint32_t rows = tree_block_rows(cols);
    EXPECT_EQ(rows % row_unit(cols), 0u) << cols;
    const uint64_t values = uint64_t{rows} * cols;
    if (rows > row_unit(cols)) {
      EXPECT_LE(values, 8192u) << cols;
    }
    EXPECT_GT(values + uint64_t{row_unit(cols)} * cols, 4096u) << cols;
  }
}

}  // namespace
}  // namespace mlx_entropy
