#include "codec/tree/model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace mlx_entropy {
namespace {

// What unpacking a leaf takes, in merges.
constexpr double kLeafPasses = 0.4;

// Bits that a node wastes in each block, and its fixed work in merges of a
// whole block.
constexpr double kNodeBits = 6.0 / 8192;
constexpr double kNodePasses = 0.06;

// choose_tree: how far above the entropy, and what it tries.
constexpr double kCompactLoss = 0.036;
constexpr double kPassCosts[] = {1.0,  0.5,  0.35, 0.25, 0.2,  0.17,
                                 0.14, 0.12, 0.1,  0.08, 0.06, 0.05,
                                 0.04, 0.03, 0.02, 0.01, 0.0};

int leaf_depth(size_t classes) { return std::bit_width(classes - 1); }

class Planner {
 public:
  Planner(std::span<const uint64_t> counts, double pass_cost) {
    for (size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] > 0) order_.push_back(i);
    }
    if (order_.empty()) order_.push_back(0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](size_t a, size_t b) { return counts[a] > counts[b]; });
    n_ = order_.size();
    double total = 0;
    for (size_t i : order_) total += static_cast<double>(counts[i]);
    mass_.push_back(0);
    for (size_t i : order_) {
      const double share =
          static_cast<double>(counts[i]) / std::max(total, 1.0);
      mass_.push_back(mass_.back() + share);
    }
    solve(pass_cost);
  }

  TreePlan plan() const {
    TreePlan plan;
    append(0, n_, &plan);
    plan.tree.link();
    return plan;
  }

 private:
  double mass(size_t i, size_t j) const { return mass_[j] - mass_[i]; }

  static double node_cost(double pass_cost) {
    return kNodeBits + kNodePasses * pass_cost;
  }

  double leaf_cost(size_t i, size_t j, double pass_cost) const {
    const int depth = leaf_depth(j - i);
    if (depth > kMaxLeafDepth) return std::numeric_limits<double>::infinity();
    return mass(i, j) * (depth + (depth > 0 ? kLeafPasses * pass_cost : 0)) +
           node_cost(pass_cost);
  }

  void solve(double pass_cost) {
    cost_.assign((n_ + 1) * (n_ + 1), 0);
    split_.assign((n_ + 1) * (n_ + 1), 0);
    for (size_t length = 1; length <= n_; ++length) {
      for (size_t i = 0; i + length <= n_; ++i) {
        const size_t j = i + length;
        double best = leaf_cost(i, j, pass_cost);
        size_t where = 0;
        const double merge =
            mass(i, j) * (1 + pass_cost) + node_cost(pass_cost);
        for (size_t m = i + 1; m < j; ++m) {
          const double cost = merge + cost_[at(i, m)] + cost_[at(m, j)];
          if (cost < best) {
            best = cost;
            where = m;
          }
        }
        cost_[at(i, j)] = best;
        split_[at(i, j)] = where;
      }
    }
  }

  void append(size_t i, size_t j, TreePlan* plan) const {
    const size_t m = split_[at(i, j)];
    if (m != 0) {
      plan->tree.add(kMerge);
      plan->bits += mass(i, j);
      plan->merges += mass(i, j) + kNodePasses;
      append(i, m, plan);
      append(m, j, plan);
      return;
    }
    const int depth = leaf_depth(j - i);
    plan->tree.add(static_cast<uint8_t>(depth));
    plan->bits += mass(i, j) * depth;
    plan->merges += kNodePasses + (depth > 0 ? kLeafPasses * mass(i, j) : 0);
    std::vector<uint8_t> classes;
    for (size_t k = i; k < j; ++k) {
      classes.push_back(static_cast<uint8_t>(order_[k]));
    }
    // In their own order, for the sake of leaves that are whole alphabets;
    // the room that is left repeats the last.
    std::sort(classes.begin(), classes.end());
    classes.resize(size_t{1} << depth, classes.back());
    plan->tree.symbols.insert(plan->tree.symbols.end(), classes.begin(),
                              classes.end());
  }

  size_t at(size_t i, size_t j) const { return i * (n_ + 1) + j; }

  size_t n_ = 0;
  std::vector<size_t> order_;
  std::vector<double> mass_;
  std::vector<double> cost_;
  std::vector<size_t> split_;
};

double entropy(std::span<const uint64_t> counts) {
  const auto total = static_cast<double>(
      std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  double bits = 0;
  for (uint64_t count : counts) {
    if (count == 0) continue;
    const double share = static_cast<double>(count) / total;
    bits -= share * std::log2(share);
  }
  return bits;
}

bool fits(const Tree& tree) {
  Tree copy = tree;
  return copy.link();
}

}  // namespace

TreePlan plan_tree(std::span<const uint64_t> counts, double pass_cost) {
  // Extremely skewed counts can make a tree too high; costlier merges make it
  // lower.
  for (;; pass_cost = std::max(2 * pass_cost, 0.01)) {
    TreePlan plan = Planner(counts, pass_cost).plan();
    if (fits(plan.tree)) return plan;
  }
}

TreePlan choose_tree(std::span<const uint64_t> counts,
                     std::optional<double> pass_cost) {
  if (pass_cost) return plan_tree(counts, *pass_cost);
  const double most = entropy(counts) * (1 + kCompactLoss);
  TreePlan plan;
  for (double each : kPassCosts) {
    plan = plan_tree(counts, each);
    if (plan.bits <= most) break;
  }
  return plan;
}

}  // namespace mlx_entropy
