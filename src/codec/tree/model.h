// Chooses the tree for a histogram.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "format/tree.h"

namespace mlx_entropy {

struct TreePlan {
  Tree tree;
  double bits = 0;    // for each value
  double merges = 0;  // work of decoding, in merges of all values
};

// A tree with few bits + pass_cost * merges for `counts` of classes (at least
// one, at most 256). Classes without a count are left out.
//
// The best of those whose subtrees are intervals of the classes sorted by
// count, by dynamic programming. Where all leaves have one class no tree is
// better; with leaves of several, others can be cheaper by a few percent.
TreePlan plan_tree(std::span<const uint64_t> counts, double pass_cost);

// Without a pass cost: the fastest tree that stays within a few percent of the
// entropy.
TreePlan choose_tree(std::span<const uint64_t> counts,
                     std::optional<double> pass_cost);

}  // namespace mlx_entropy
