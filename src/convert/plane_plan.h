// Chooses how a plane's values are split into coded classes and raw bits.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "format/container.h"

namespace mlx_entropy {

// Counts of values in a window [base, base + bins << shift), one bin for
// 2^shift values, and of those outside of it.
class PlaneHistogram {
 public:
  // `value_bits` as MatrixHeader::value_bits: at most 4096 bins.
  PlaneHistogram(PlaneKind kind, int value_bits);

  void add(const uint32_t* values, size_t count);
  void add(const uint8_t* values, size_t count);
  void merge(const PlaneHistogram& other);

  uint32_t base() const { return base_; }
  int shift() const { return shift_; }
  int value_bits() const { return value_bits_; }
  uint64_t outside() const { return outside_; }
  uint64_t total() const;
  // Lowest bits that all values share, and what these bits are.
  int common_bits() const;
  uint32_t example() const { return first_; }
  const std::vector<uint64_t>& bins() const { return bins_; }

 private:
  static constexpr size_t kByteBins = 256;

  template <class T>
  void add_values(const T* values, size_t count);
  template <class T>
  void add_bytes(const T* values, size_t count);

  uint32_t base_ = 0;
  int shift_ = 0;
  int value_bits_ = 0;
  uint64_t outside_ = 0;
  bool any_ = false;
  uint32_t first_ = 0;
  uint32_t differing_ = 0;  // bits in which some value differs from first_
  std::vector<uint64_t> bins_;
};

struct PlanePlan {
  Plane plane;
  double bits = 0;    // estimated coded size of the whole plane
  double merges = 0;  // of a tree, for each value; see TreePlan
};

// The cheapest split for one of the two rANS coders, or for a side plane of a
// tree container, which has no coded classes.
PlanePlan plan_plane(PlaneKind kind, const PlaneHistogram& histogram,
                     Coder coder);

// The weights plane of a tree container. `pass_cost` as in plan_tree; without
// it the tree is compact.
PlanePlan plan_tree_plane(PlaneKind kind, const PlaneHistogram& histogram,
                          std::optional<double> pass_cost);

}  // namespace mlx_entropy
