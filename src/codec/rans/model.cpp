#include "codec/rans/model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "format/layout.h"

namespace mlx_entropy {
namespace {

// Change in coded bits when a symbol's frequency moves from f to f + delta.
double cost_of_change(uint64_t count, uint32_t f, int delta) {
  return static_cast<double>(count) *
         (std::log2(static_cast<double>(f)) -
          std::log2(static_cast<double>(f) + delta));
}

struct Change {
  size_t symbol = 0;
  double cost = std::numeric_limits<double>::infinity();
};

// Where moving a frequency by delta (1 or -1) costs least.
Change cheapest_change(std::span<const uint64_t> counts,
                       std::span<const uint16_t> frequencies, uint32_t total,
                       int delta) {
  Change best;
  for (size_t i = 0; i < counts.size(); ++i) {
    const uint32_t f = frequencies[i];
    if (f == 0 || (delta < 0 && f == 1) || (delta > 0 && f + 1 >= total)) {
      continue;
    }
    const double cost = cost_of_change(counts[i], f, delta);
    if (cost < best.cost) best = {i, cost};
  }
  return best;
}

void move(uint16_t* frequency, int delta) {
  *frequency = static_cast<uint16_t>(*frequency + delta);
}

}  // namespace

std::vector<uint16_t> quantize_frequencies(std::span<const uint64_t> counts,
                                           int precision_bits) {
  const uint32_t total = uint32_t{1} << precision_bits;
  const auto sum = static_cast<double>(
      std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  std::vector<uint16_t> frequencies(counts.size(), 0);
  const auto present = static_cast<size_t>(std::count_if(
      counts.begin(), counts.end(), [](uint64_t c) { return c > 0; }));
  if (present <= 1) {
    const auto it = std::max_element(counts.begin(), counts.end());
    frequencies[static_cast<size_t>(it - counts.begin())] =
        static_cast<uint16_t>(total);
    return frequencies;
  }
  int64_t excess = -static_cast<int64_t>(total);
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) continue;
    const double exact = static_cast<double>(counts[i]) / sum * total;
    frequencies[i] = static_cast<uint16_t>(
        std::clamp(std::lround(exact), 1L, static_cast<long>(total) - 1));
    excess += frequencies[i];
  }
  // Rounding leaves a small excess: move one unit at a time, each time where
  // it costs least.
  for (; excess != 0; excess += excess > 0 ? -1 : 1) {
    const int delta = excess > 0 ? -1 : 1;
    const Change change = cheapest_change(counts, frequencies, total, delta);
    move(&frequencies[change.symbol], delta);
  }
  // Rounding is not yet the optimum, mostly for small frequencies. The cost is
  // convex in each of them, so when no move of one unit helps, nothing does.
  for (;;) {
    const Change gain = cheapest_change(counts, frequencies, total, 1);
    const Change loss = cheapest_change(counts, frequencies, total, -1);
    // The margin is for rounding errors, so that this ends.
    if (!(gain.cost + loss.cost < -1e-9 * loss.cost)) break;
    move(&frequencies[gain.symbol], 1);
    move(&frequencies[loss.symbol], -1);
  }
  return frequencies;
}

double coded_bits(std::span<const uint64_t> counts,
                  std::span<const uint16_t> frequencies, int precision_bits) {
  double bits = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0 || frequencies[i] == 0) continue;
    bits += static_cast<double>(counts[i]) *
            (precision_bits - std::log2(static_cast<double>(frequencies[i])));
  }
  return bits;
}

AliasTable AliasTable::build(std::span<const uint16_t> frequencies) {
  constexpr size_t kBuckets = 16;
  AliasTable table{};
  std::array<uint32_t, kBuckets> left{};
  std::array<uint8_t, kBuckets> alias{};
  for (size_t i = 0; i < frequencies.size(); ++i) {
    left[i] = frequencies[i];
    table.symbol_frequency[i] = static_cast<uint8_t>(frequencies[i]);
  }
  // Vose: a symbol with fewer than 16 slots shares its bucket with one that
  // has more. Both lists are stacks filled in symbol order.
  std::vector<uint8_t> small, large;
  for (uint8_t i = 0; i < kBuckets; ++i) {
    (left[i] < kBuckets ? small : large).push_back(i);
    alias[i] = i;
  }
  while (!small.empty()) {
    const uint8_t s = small.back();
    const uint8_t l = large.back();
    small.pop_back();
    alias[s] = l;
    left[l] -= static_cast<uint32_t>(kBuckets) - left[s];
    if (left[l] < kBuckets) {
      large.pop_back();
      small.push_back(l);
    }
  }
  std::array<uint32_t, kBuckets> rank{};
  for (size_t b = 0; b < kBuckets; ++b) {
    const uint32_t own = alias[b] == b ? kBuckets : left[b];
    table.divider[b] = static_cast<uint8_t>(own);
    const uint8_t owner[2] = {static_cast<uint8_t>(b), alias[b]};
    const uint32_t first[2] = {static_cast<uint32_t>(16 * b),
                               static_cast<uint32_t>(16 * b) + own};
    const uint32_t size[2] = {own, static_cast<uint32_t>(kBuckets) - own};
    for (size_t half = 0; half < 2; ++half) {
      const size_t entry = b + 16 * half;
      const uint8_t symbol = owner[half];
      table.symbol[entry] = symbol;
      table.frequency[entry] = table.symbol_frequency[symbol];
      table.rank_shift[entry] =
          static_cast<uint8_t>(rank[symbol] - first[half]);
      rank[symbol] += size[half];
    }
  }
  return table;
}

std::vector<uint32_t> build_slot_table(std::span<const uint16_t> frequencies) {
  std::vector<uint32_t> table;
  table.reserve(size_t{1} << kRans32.precision_bits);
  for (size_t symbol = 0; symbol < frequencies.size(); ++symbol) {
    for (uint32_t rank = 0; rank < frequencies[symbol]; ++rank) {
      table.push_back(static_cast<uint32_t>(symbol) << 24 |
                      uint32_t{frequencies[symbol]} << 12 | rank);
    }
  }
  return table;
}

}  // namespace mlx_entropy
