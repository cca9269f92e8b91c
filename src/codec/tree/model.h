// Chooses the tree for a histogram.
#pragma once

#include <cstdint>
#include <span>

#include "format/tree.h"

namespace mlx_entropy {

struct TreePlan {
  Tree tree;
  double bits = 0;    // for each value
  double merges = 0;  // values that pass a merge, for each value
};

// A tree with few bits + pass_cost * merges for `counts` of classes (at least
// one, at most 256). Classes without a count are left out.
//
// The best of those whose subtrees are intervals of the classes sorted by
// count, by dynamic programming. Where all leaves have one class no tree is
// better; with leaves of several, others can be cheaper by a few percent.
TreePlan plan_tree(std::span<const uint64_t> counts, double pass_cost);

// The fastest tree that stays within a few percent of the entropy.
TreePlan plan_compact_tree(std::span<const uint64_t> counts);

}  // namespace mlx_entropy
