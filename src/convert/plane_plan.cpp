#include "convert/plane_plan.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "codec/rans/model.h"
#include "codec/tree/model.h"

namespace mlx_entropy {
namespace {

// Fine enough for any useful split, and quick to search.
constexpr int kMaxBinBits = 12;
constexpr double kExceptionBits = 8 * kExceptionSize;

// Unpacking a raw bit mask takes time that a whole raw byte does not; a split
// with masks must save this much of a bit for each of them.
constexpr double kMaskPenaltyBits = 0.004;
constexpr double kPalettePenaltyBits = 0.004;

// First of `size` neighbouring classes that hold the most values.
size_t densest_window(const std::vector<uint64_t>& counts, size_t size) {
  uint64_t sum = 0, best_sum = 0;
  size_t best = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    sum += counts[i];
    if (i >= size) sum -= counts[i - size];
    if (sum > best_sum) {
      best_sum = sum;
      best = i + 1 >= size ? i + 1 - size : 0;
    }
  }
  return best;
}

// One more raw bit: neighbouring classes become one.
std::vector<uint64_t> merge_pairs(const std::vector<uint64_t>& counts) {
  std::vector<uint64_t> merged((counts.size() + 1) / 2, 0);
  for (size_t i = 0; i < counts.size(); ++i) merged[i / 2] += counts[i];
  return merged;
}

// `counts`: the histogram in bins of 2^raw_bits values.
PlanePlan plan_split(PlaneKind kind, const PlaneHistogram& histogram,
                     std::vector<uint64_t> counts, int raw_bits,
                     const CoderLimits& limits,
                     std::vector<uint64_t>* class_counts = nullptr) {
  const auto n = static_cast<double>(histogram.total());
  const size_t first =
      densest_window(counts, static_cast<size_t>(limits.max_classes));
  const size_t last =
      std::min(counts.size(), first + static_cast<size_t>(limits.max_classes));
  // Interior classes too rare for the smallest frequency are exceptions.
  const double smallest_share = n / (1 << limits.precision_bits);
  uint64_t exceptions = histogram.outside();
  for (size_t i = 0; i < counts.size(); ++i) {
    const bool inside = i >= first && i < last;
    const double own = static_cast<double>(counts[i]);
    const bool rare = own * (kExceptionBits - limits.precision_bits) <
                      smallest_share * 1.4427;
    if (!inside || rare) {
      exceptions += counts[i];
      counts[i] = 0;
    }
  }
  size_t begin = first, end = last;
  while (end - begin > 1 && counts[end - 1] == 0) --end;
  while (end - begin > 1 && counts[begin] == 0) ++begin;

  PlanePlan plan;
  plan.plane.kind = kind;
  // Values share their lowest bits with the base, which the window of a signed
  // plane only has down to its own alignment.
  plan.plane.shift = std::min(
      {raw_bits, histogram.common_bits(), std::countr_zero(histogram.base())});
  plan.plane.raw_bits = raw_bits - plan.plane.shift;
  plan.plane.base =
      histogram.base() + static_cast<uint32_t>(begin << raw_bits) +
      (histogram.example() &
       static_cast<uint32_t>((uint64_t{1} << plan.plane.shift) - 1));
  const std::span window(counts.data() + begin, end - begin);
  if (class_counts != nullptr)
    class_counts->assign(window.begin(), window.end());
  plan.plane.frequencies = quantize_frequencies(window, limits.precision_bits);
  // With one live class the others are all exceptions: no need for a table.
  if (std::count_if(window.begin(), window.end(),
                    [](uint64_t c) { return c > 0; }) <= 1) {
    plan.plane.frequencies = {
        static_cast<uint16_t>(1 << limits.precision_bits)};
  }
  plan.bits =
      coded_bits(window, plan.plane.frequencies, limits.precision_bits) *
          (plan.plane.coded() ? 1 : 0) +
      plan.plane.raw_bits * n +
      kExceptionBits * static_cast<double>(exceptions) +
      8.0 * (plane::kSize + 2.0 * static_cast<double>(window.size()));
  return plan;
}

// Classes of symbols sorted by frequency, so that those that share a class are
// about equally likely and the raw bits that tell them apart are well spent.
PlanePlan plan_palette(const PlaneHistogram& histogram, int raw_bits,
                       const CoderLimits& limits) {
  const auto n = static_cast<double>(histogram.total());
  const std::vector<uint64_t>& bins = histogram.bins();
  std::vector<size_t> order;
  for (size_t value = 0; value < bins.size(); ++value) {
    if (bins[value] > 0) order.push_back(value);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return bins[a] > bins[b]; });
  const size_t room = static_cast<size_t>(limits.max_classes) << raw_bits;
  uint64_t exceptions = 0;
  while (order.size() > 1) {
    const auto own = static_cast<double>(bins[order.back()]);
    const bool rare = own * kExceptionBits * (1 << limits.precision_bits) < n;
    if (order.size() <= room && !rare) break;
    exceptions += bins[order.back()];
    order.pop_back();
  }
  const size_t per_class = size_t{1} << raw_bits;
  PlanePlan plan;
  plan.plane.kind = PlaneKind::kCodes;
  plan.plane.raw_bits = raw_bits;
  std::vector<uint64_t> counts((order.size() + per_class - 1) / per_class, 0);
  plan.plane.palette.assign(counts.size() * per_class, 0);
  for (size_t i = 0; i < order.size(); ++i) {
    counts[i / per_class] += bins[order[i]];
    plan.plane.palette[i] = static_cast<uint8_t>(order[i]);
  }
  plan.plane.frequencies = quantize_frequencies(counts, limits.precision_bits);
  plan.bits = (plan.plane.coded() ? coded_bits(counts, plan.plane.frequencies,
                                               limits.precision_bits)
                                  : 0) +
              raw_bits * n + kExceptionBits * static_cast<double>(exceptions) +
              8.0 * (plane::kSize + 2.0 * static_cast<double>(counts.size()) +
                     static_cast<double>(plan.plane.palette.size()));
  return plan;
}

}  // namespace

PlaneHistogram::PlaneHistogram(PlaneKind kind, int value_bits)
    : value_bits_(value_bits) {
  const int bin_bits = std::min(value_bits, kMaxBinBits);
  bins_.assign(size_t{1} << bin_bits, 0);
  // Signed planes are small integers around zero.
  constexpr uint32_t kHalf = uint32_t{1} << (kMaxBinBits - 1);
  if (kind == PlaneKind::kOffsets) {
    base_ = kOffsetBias - kHalf;
  } else if (kind == PlaneKind::kCorrections) {
    base_ = kCorrectionBias - kHalf;
  } else {
    shift_ = value_bits - bin_bits;
  }
}

void PlaneHistogram::add(const uint32_t* values, size_t count) {
  add_values(values, count);
}

void PlaneHistogram::add(const uint8_t* values, size_t count) {
  add_values(values, count);
}

template <class T>
void PlaneHistogram::add_values(const T* values, size_t count) {
  if (count > 0 && !any_) {
    any_ = true;
    first_ = values[0];
  }
  if (bins_.size() <= kByteBins && shift_ == 0 && base_ == 0) {
    add_bytes(values, count);
    for (uint32_t value = 0; value < bins_.size(); ++value) {
      if (bins_[value] > 0) differing_ |= value ^ first_;
    }
    return;
  }
  for (size_t i = 0; i < count; ++i) differing_ |= values[i] ^ first_;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bin = (values[i] - base_) >> shift_;
    if (bin < bins_.size()) {
      ++bins_[bin];
    } else {
      ++outside_;
    }
  }
}

// Codes never leave the window. Four counters for each value, because one
// that is incremented twice in a row waits for itself.
template <class T>
void PlaneHistogram::add_bytes(const T* values, size_t count) {
  uint32_t counters[4][kByteBins] = {};
  size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (size_t k = 0; k < 4; ++k) ++counters[k][values[i + k] & 255];
  }
  for (; i < count; ++i) ++counters[0][values[i] & 255];
  for (size_t bin = 0; bin < bins_.size(); ++bin) {
    for (const auto& counter : counters) bins_[bin] += counter[bin];
  }
}

void PlaneHistogram::merge(const PlaneHistogram& other) {
  for (size_t i = 0; i < bins_.size(); ++i) bins_[i] += other.bins_[i];
  outside_ += other.outside_;
  if (!other.any_) return;
  if (!any_) first_ = other.first_;
  any_ = true;
  differing_ |= other.differing_ | (first_ ^ other.first_);
}

int PlaneHistogram::common_bits() const { return std::countr_zero(differing_); }

uint64_t PlaneHistogram::total() const {
  return std::accumulate(bins_.begin(), bins_.end(), outside_);
}

PlanePlan plan_plane(PlaneKind kind, const PlaneHistogram& histogram,
                     Coder coder) {
  CoderLimits limits = coder_limits(coder);
  if (coder == Coder::kTree) limits.max_classes = 1;
  const auto n = static_cast<double>(histogram.total());
  PlanePlan best;
  double best_cost = 0;
  const int most =
      std::min(histogram.shift() + kMaxBinBits, histogram.value_bits());
  std::vector<uint64_t> counts = histogram.bins();
  for (int raw_bits = histogram.shift(); raw_bits <= most; ++raw_bits) {
    if (raw_bits > histogram.shift()) counts = merge_pairs(counts);
    PlanePlan plan = plan_split(kind, histogram, counts, raw_bits, limits);
    const double cost =
        plan.bits + n * (plan.plane.raw_bits % 8) * kMaskPenaltyBits;
    if (best.plane.frequencies.empty() || cost < best_cost) {
      best = std::move(plan);
      best_cost = cost;
    }
  }
  if (kind == PlaneKind::kCodes && coder != Coder::kTree) {
    for (int raw_bits = 0; raw_bits <= 4; ++raw_bits) {
      PlanePlan plan = plan_palette(histogram, raw_bits, limits);
      const double cost =
          plan.bits + n * (kPalettePenaltyBits + raw_bits * kMaskPenaltyBits);
      if (cost < best_cost && plan.plane.palette.size() <= 256) {
        best = std::move(plan);
        best_cost = cost;
      }
    }
  }
  // Everything raw is always possible and never needs exceptions.
  if (n * histogram.value_bits() < best.bits) {
    best.plane.raw_bits = histogram.value_bits();
    best.plane.shift = 0;
    best.plane.base = 0;
    best.plane.palette.clear();
    best.plane.frequencies = {
        static_cast<uint16_t>(1 << limits.precision_bits)};
    best.bits = n * histogram.value_bits();
  }
  return best;
}

namespace {

// Every value is a class of its own: leaves are raw bits already, and rare
// values cost less deep in the tree than as exceptions.
PlanePlan plan_whole_tree(PlaneKind kind, const PlaneHistogram& histogram,
                          std::optional<double> pass_cost) {
  const TreePlan tree = choose_tree(histogram.bins(), pass_cost);
  PlanePlan plan;
  plan.plane.kind = kind;
  plan.plane.tree = tree.tree;
  plan.plane.tree_classes = static_cast<uint32_t>(histogram.bins().size());
  plan.bits = static_cast<double>(histogram.total()) * tree.bits +
              8.0 * static_cast<double>(tree.tree.stored_bytes());
  plan.merges = tree.merges;
  return plan;
}

}  // namespace

PlanePlan plan_tree_plane(PlaneKind kind, const PlaneHistogram& histogram,
                          std::optional<double> pass_cost) {
  const auto n = static_cast<double>(histogram.total());
  PlanePlan best = plan_plane(kind, histogram, Coder::kTree);
  if (histogram.value_bits() <= kMaxLeafDepth) {
    const bool constant = best.plane.raw_bits == 0 && best.bits < n;
    return constant ? best : plan_whole_tree(kind, histogram, pass_cost);
  }
  // The raw plane is what a tree has to beat.
  std::vector<uint64_t> counts = histogram.bins();
  const int most = histogram.shift() + kMaxBinBits;
  for (int raw_bits = histogram.shift(); raw_bits <= most; ++raw_bits) {
    if (raw_bits > histogram.shift()) counts = merge_pairs(counts);
    std::vector<uint64_t> classes;
    PlanePlan plan =
        plan_split(kind, histogram, counts, raw_bits, kRans32, &classes);
    if (plan.plane.frequencies.size() < 2) continue;
    const TreePlan tree = choose_tree(classes, pass_cost);
    plan.merges = tree.merges;
    plan.bits +=
        n * tree.bits -
        coded_bits(classes, plan.plane.frequencies, kRans32.precision_bits) +
        n * (plan.plane.raw_bits % 8) * kMaskPenaltyBits;
    plan.plane.frequencies.clear();
    plan.plane.tree = tree.tree;
    plan.plane.tree_classes = static_cast<uint32_t>(classes.size());
    if (plan.bits < best.bits) best = std::move(plan);
  }
  return best;
}

}  // namespace mlx_entropy
