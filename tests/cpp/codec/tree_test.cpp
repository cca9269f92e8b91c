#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "codec/tree/encode.h"
#include "codec/tree/model.h"
#include "support/trees.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;
using testing::RandomTree;
using testing::TreeShape;
using Counts = std::vector<uint64_t>;

// The model of plan_tree: unpacking a leaf counts as 0.4 merges; each node
// takes the time of 0.06 merges of a whole block of 8192 values, and wastes 6
// bits in it.
constexpr double kLeafPasses = 0.4;
constexpr double kNodePasses = 0.06;
constexpr double kNodeBits = 6.0 / 8192;

double node_cost(double pass_cost) {
  return kNodeBits + kNodePasses * pass_cost;
}

double share_of(const Counts& counts, uint64_t part) {
  return static_cast<double>(part) /
         static_cast<double>(
             std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
}

double leaf_cost(int depth, double share, double pass_cost) {
  return node_cost(pass_cost) +
         (depth == 0 ? 0 : share * (depth + kLeafPasses * pass_cost));
}

struct TreeCost {
  uint64_t below = 0;
  double cost = 0, bits = 0, merges = 0;
};

// What the tree costs, from its nodes alone; moves `index` behind the node.
TreeCost cost_of(const Tree& tree, const Counts& counts, double pass_cost,
                 size_t* index) {
  const TreeNode& node = tree.nodes[(*index)++];
  TreeCost sum;
  if (node.depth != kMerge) {
    std::vector<uint8_t> classes(
        tree.symbols.begin() + node.symbols,
        tree.symbols.begin() + node.symbols + (1 << node.depth));
    std::sort(classes.begin(), classes.end());
    classes.erase(std::unique(classes.begin(), classes.end()), classes.end());
    for (uint8_t c : classes) sum.below += counts[c];
    const double share = share_of(counts, sum.below);
    sum.cost = leaf_cost(node.depth, share, pass_cost);
    sum.bits = share * node.depth;
    sum.merges = kNodePasses + (node.depth > 0 ? kLeafPasses * share : 0);
    return sum;
  }
  const TreeCost left = cost_of(tree, counts, pass_cost, index);
  const TreeCost right = cost_of(tree, counts, pass_cost, index);
  sum.below = left.below + right.below;
  const double share = share_of(counts, sum.below);
  sum.cost =
      share * (1 + pass_cost) + node_cost(pass_cost) + left.cost + right.cost;
  sum.bits = share + left.bits + right.bits;
  sum.merges = share + kNodePasses + left.merges + right.merges;
  return sum;
}

TreeCost cost_of(const Tree& tree, const Counts& counts, double pass_cost) {
  size_t index = 0;
  return cost_of(tree, counts, pass_cost, &index);
}

// The least cost of any tree at all: over all sets of classes and all ways to
// split them in two.
double least_cost(const Counts& counts, double pass_cost) {
  Counts live;
  std::copy_if(counts.begin(), counts.end(), std::back_inserter(live),
               [](uint64_t count) { return count > 0; });
  const size_t sets = size_t{1} << live.size();
  std::vector<double> best(sets, 0);
  for (size_t set = 1; set < sets; ++set) {
    uint64_t below = 0;
    for (size_t i = 0; i < live.size(); ++i)
      below += set >> i & 1 ? live[i] : 0;
    const double share = share_of(counts, below);
    const int depth =
        std::bit_width(static_cast<unsigned>(std::popcount(set)) - 1);
    best[set] = leaf_cost(depth, share, pass_cost);
    const double merge = share * (1 + pass_cost) + node_cost(pass_cost);
    for (size_t part = (set - 1) & set; part > 0; part = (part - 1) & set) {
      best[set] = std::min(best[set], merge + best[part] + best[set ^ part]);
    }
  }
  return best[sets - 1];
}

Counts random_counts(std::mt19937* random, size_t classes) {
  std::uniform_real_distribution<double> exponent(
      0, std::uniform_real_distribution<double>(0.5, 12)(*random));
  Counts counts(classes);
  for (uint64_t& count : counts) {
    count = (*random)() % 8 == 0
                ? 0
                : static_cast<uint64_t>(std::exp(exponent(*random)));
  }
  counts[(*random)() % classes] += 5;
  return counts;
}

// Not quite the best: subtrees are intervals of the classes sorted by count.
TEST(PlanTree, IsNearlyTheBestOfAllTrees) {
  std::mt19937 random(1);
  double sum = 0, best_sum = 0;
  for (int round = 0; round < 400; ++round) {
    const Counts counts = random_counts(&random, 1 + random() % 9);
    for (double pass_cost : {0.0, 0.05, 0.3, 1.0, 4.0}) {
      const TreePlan plan = plan_tree(counts, pass_cost);
      const TreeCost cost = cost_of(plan.tree, counts, pass_cost);
      EXPECT_NEAR(plan.bits, cost.bits, 1e-9);
      EXPECT_NEAR(plan.merges, cost.merges, 1e-9);
      const double best = least_cost(counts, pass_cost);
      sum += cost.cost;
      best_sum += best;
      // Without a cost of passes, only the nodes' own bytes can be fewer.
      EXPECT_LE(cost.cost, pass_cost > 0 ? 1.06 * best : best + 6 * kNodeBits)
          << ::testing::PrintToString(counts) << " " << pass_cost;
      EXPECT_GE(cost.cost, best - 1e-9);
    }
  }
  EXPECT_LT(sum, 1.005 * best_sum);
}

// Whatever the counts: a valid tree, each class with a count in one leaf, and
// no other class.
TEST(PlanTree, KeepsTheLimitsOfTheFormat) {
  std::mt19937 random(2);
  for (int round = 0; round < 60; ++round) {
    Counts counts = random_counts(&random, 1 + random() % 256);
    if (round % 4 == 0) {  // doubling counts ask for a chain of merges
      for (size_t i = 0; i < counts.size(); ++i) {
        counts[i] = uint64_t{1} << std::min<size_t>(i, 55);
      }
    }
    for (double pass_cost : {0.0, 0.2, 1e9}) {
      Tree tree = plan_tree(counts, pass_cost).tree;
      EXPECT_TRUE(tree.link());
      std::vector<bool> present(256, false);
      for (uint8_t symbol : tree.symbols) present[symbol] = true;
      for (size_t i = 0; i < 256; ++i) {
        EXPECT_EQ(present[i], i < counts.size() && counts[i] > 0) << i;
      }
    }
  }
}

TEST(PlanTree, OneClassAndNone) {
  for (const Counts& counts : {Counts{7}, Counts{0, 9, 0}, Counts{0}}) {
    const TreePlan plan = plan_tree(counts, 0.1);
    ASSERT_EQ(plan.tree.nodes.size(), 1u);
    EXPECT_EQ(plan.tree.nodes[0].depth, 0);
    EXPECT_EQ(plan.tree.symbols, Bytes{counts.size() == 3});
    EXPECT_EQ(plan.bits, 0);
  }
}

TEST(PlanTree, MoreCostlyPassesMakeFewerOfThem) {
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    const Counts counts = random_counts(&random, 2 + random() % 30);
    double merges = std::numeric_limits<double>::infinity(), bits = 0;
    for (double pass_cost : {0.0, 0.02, 0.1, 0.3, 1.0, 10.0}) {
      const TreePlan plan = plan_tree(counts, pass_cost);
      EXPECT_LE(plan.merges, merges + 1e-9);
      // Nodes are part of the cost, so bits alone may fall by what they save.
      EXPECT_GE(plan.bits, bits - 60 * kNodeBits);
      merges = plan.merges;
      bits = plan.bits;
    }
  }
}

double entropy_of(const Counts& counts) {
  double bits = 0;
  for (uint64_t count : counts) {
    if (count > 0)
      bits -= share_of(counts, count) * std::log2(share_of(counts, count));
  }
  return bits;
}

// 16 codes, as quantized weights have them.
Counts gaussian(double sigma, double middle) {
  Counts counts(16);
  for (size_t i = 0; i < counts.size(); ++i) {
    const double z = (static_cast<double>(i) - middle) / sigma;
    counts[i] = static_cast<uint64_t>(1e9 * std::exp(-z * z / 2));
  }
  return counts;
}

TEST(PlanCompactTree, IsCloseToTheEntropyOfGaussians) {
  int tested = 0;
  double lowest = 8, highest = 0;
  for (double sigma = 1.2; sigma < 6; sigma += 0.05) {
    for (double middle : {7.0, 7.3, 7.5, 8.0, 8.2}) {
      const Counts counts = gaussian(sigma, middle);
      const double entropy = entropy_of(counts);
      if (entropy < 2.5 || entropy > 3.8) continue;
      ++tested;
      lowest = std::min(lowest, entropy);
      highest = std::max(highest, entropy);
      const TreePlan plan = choose_tree(counts, std::nullopt);
      EXPECT_LT(plan.bits, 1.04 * entropy) << sigma << " " << middle;
      EXPECT_GE(plan.bits, entropy - 1e-9);
    }
  }
  EXPECT_GT(tested, 100);
  EXPECT_LT(lowest, 2.55);
  EXPECT_GT(highest, 3.75);
}

// Bytes, not estimates: what each node wastes in a block included.
TEST(PlanCompactTree, CodedBlocksAreCloseToTheEntropyToo) {
  std::mt19937 random(4);
  for (double sigma : {1.4, 2.0, 3.0, 4.5}) {
    const Counts model = gaussian(sigma, 7.5);
    std::discrete_distribution<int> draw(model.begin(), model.end());
    Bytes values(64 * 4096);
    Counts counts(16, 0);
    for (uint8_t& value : values) {
      value = static_cast<uint8_t>(draw(random));
      ++counts[value];
    }
    const TreePlan plan = choose_tree(counts, std::nullopt);
    const TreeEncoder encoder(plan.tree);
    Bytes coded;
    for (size_t first = 0; first < values.size(); first += 4096) {
      encoder.append(&values[first], 4096, &coded);
    }
    const double bits = 8 * static_cast<double>(coded.size()) /
                        static_cast<double>(values.size());
    EXPECT_LT(bits, 1.04 * entropy_of(counts)) << sigma;
    EXPECT_GE(bits, plan.bits - 1e-9);
    EXPECT_LT(bits, plan.bits + 0.04);
  }
}

// The least a decoder can be: a node's values from those of its children.
Bytes decode_node(const Tree& tree, size_t index, size_t count,
                  const uint8_t** at) {
  const TreeNode& node = tree.nodes[index];
  const uint8_t* const bits = *at;
  const auto bit = [&](size_t i) { return bits[i / 8] >> (i % 8) & 1; };
  Bytes values(count);
  if (node.depth == kMerge) {
    *at += ceil_div(count, 8);
    size_t ones = 0;
    for (size_t i = 0; i < count; ++i) ones += static_cast<size_t>(bit(i));
    const Bytes left = decode_node(tree, index + 1, count - ones, at);
    const Bytes right = decode_node(tree, node.right, ones, at);
    auto l = left.begin(), r = right.begin();
    for (size_t i = 0; i < count; ++i) values[i] = bit(i) ? *r++ : *l++;
    return values;
  }
  *at += ceil_div(count * node.depth, 8);
  for (size_t i = 0; i < count; ++i) {
    size_t place = 0;
    for (size_t k = 0; k < node.depth; ++k) {
      place |= static_cast<size_t>(bit(i * node.depth + k)) << k;
    }
    values[i] = tree.symbols[node.symbols + place];
  }
  return values;
}

TEST(TreeEncoder, RoundTripsAnyTreeAndCount) {
  std::mt19937 random(5);
  for (int round = 0; round < 1000; ++round) {
    const auto shape = static_cast<TreeShape>(random() % 3);
    const size_t merges =
        shape == TreeShape::kAny ? random() % 60 : random() % 33;
    const Tree tree =
        RandomTree(&random, 1 + random() % 256, round % 9, shape).make(merges);
    if (tree.empty()) continue;  // random trees may be too high
    const size_t count = random() % 3 == 0 ? random() % 5 : random() % 700;
    const Bytes values = testing::random_tree_values(
        &random, tree, count, round % 2 == 0 ? 0.05 : 20);
    Bytes coded = {1, 2, 3};
    TreeEncoder(tree).append(values.data(), count, &coded);
    const uint8_t* at = coded.data() + 3;
    ASSERT_EQ(decode_node(tree, 0, count, &at), values) << round;
    ASSERT_EQ(at, coded.data() + coded.size());
  }
}

}  // namespace
}  // namespace mlx_entropy
