#include "codec/rans/model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "support/random_frequencies.h"

namespace mlx_entropy {
namespace {

using Counts = std::vector<uint64_t>;
using Frequencies = std::vector<uint16_t>;

uint32_t sum(const Frequencies& frequencies) {
  return std::accumulate(frequencies.begin(), frequencies.end(), 0u);
}

double entropy_bits(const Counts& counts) {
  const auto total = static_cast<double>(
      std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  double bits = 0;
  for (uint64_t count : counts) {
    const auto n = static_cast<double>(count);
    if (count > 0) bits -= n * std::log2(n / total);
  }
  return bits;
}

Counts random_counts(std::mt19937* random, size_t symbols) {
  Counts counts(symbols);
  std::exponential_distribution<double> spread(
      std::uniform_real_distribution<double>(0.05, 2)(*random));
  for (uint64_t& count : counts) {
    count = static_cast<uint64_t>(std::exp(spread(*random)));
    if ((*random)() % 8 == 0) count = 0;
  }
  counts[(*random)() % symbols] += 1000;
  return counts;
}

TEST(QuantizeFrequencies, KeepsItsPromises) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const bool narrow = round % 2 == 0;
    const int precision = narrow ? 8 : 12;
    const uint32_t total = 1u << precision;
    const Counts counts =
        random_counts(&random, 1 + random() % (narrow ? 16 : 256));
    const auto frequencies = quantize_frequencies(counts, precision);
    const auto present = std::count_if(counts.begin(), counts.end(),
                                       [](uint64_t c) { return c > 0; });
    ASSERT_EQ(frequencies.size(), counts.size());
    ASSERT_EQ(sum(frequencies), total);
    for (size_t i = 0; i < counts.size(); ++i) {
      ASSERT_EQ(frequencies[i] > 0, counts[i] > 0);
      if (present > 1) {
        ASSERT_LT(frequencies[i], total);
      }
    }
  }
}

TEST(QuantizeFrequencies, Extremes) {
  EXPECT_EQ(quantize_frequencies(Counts{0, 0, 0}, 8), (Frequencies{256, 0, 0}));
  EXPECT_EQ(quantize_frequencies(Counts{0, 9, 0}, 8), (Frequencies{0, 256, 0}));
  EXPECT_EQ(quantize_frequencies(Counts{1, uint64_t{1} << 50}, 8),
            (Frequencies{1, 255}));
  EXPECT_EQ(quantize_frequencies(Counts{uint64_t{1} << 50, 1, 1}, 12),
            (Frequencies{4094, 1, 1}));
  EXPECT_EQ(quantize_frequencies(Counts(256, 1), 12), Frequencies(256, 16));
  EXPECT_EQ(quantize_frequencies(Counts(16, 7), 8), Frequencies(16, 16));
}

// No unit of frequency does better in another place.
TEST(QuantizeFrequencies, CannotBeImprovedByOneMove) {
  std::mt19937 random(2);
  for (int round = 0; round < 400; ++round) {
    const Counts counts = random_counts(&random, 2 + random() % 15);
    auto frequencies = quantize_frequencies(counts, 8);
    const double best = coded_bits(counts, frequencies, 8);
    for (size_t from = 0; from < counts.size(); ++from) {
      for (size_t to = 0; to < counts.size(); ++to) {
        if (from == to || frequencies[from] < 2 || frequencies[to] == 0 ||
            frequencies[to] == 255) {
          continue;
        }
        --frequencies[from], ++frequencies[to];
        EXPECT_GE(coded_bits(counts, frequencies, 8), best * (1 - 1e-12));
        ++frequencies[from], --frequencies[to];
      }
    }
  }
}

TEST(QuantizeFrequencies, CostsLittleMoreThanTheEntropy) {
  Counts gaussian;
  for (int i = -8; i < 8; ++i) {
    gaussian.push_back(
        static_cast<uint64_t>(1e7 * std::exp(-(i + 0.5) * (i + 0.5) / 18)));
  }
  const auto n = static_cast<double>(
      std::accumulate(gaussian.begin(), gaussian.end(), uint64_t{0}));
  const double entropy = entropy_bits(gaussian) / n;
  EXPECT_LT(coded_bits(gaussian, quantize_frequencies(gaussian, 8), 8) / n,
            entropy + 0.002);
  EXPECT_LT(coded_bits(gaussian, quantize_frequencies(gaussian, 12), 12) / n,
            entropy + 0.00002);
}

TEST(CodedBits, CountsOnlyClassesWithAFrequency) {
  EXPECT_DOUBLE_EQ(coded_bits(Counts{4, 4, 100}, Frequencies{128, 128, 0}, 8),
                   8.0);
  EXPECT_DOUBLE_EQ(coded_bits(Counts{0, 5}, Frequencies{192, 64}, 8), 10.0);
}

// The construction as docs/format.md words it, on its own.
std::array<size_t, 256> classes_by_document(const Frequencies& frequencies) {
  std::array<int, 16> left{}, alias{}, divider{};
  std::copy(frequencies.begin(), frequencies.end(), left.begin());
  std::vector<int> small, large;
  for (int i = 0; i < 16; ++i) {
    (left[i] < 16 ? small : large).push_back(i);
    alias[i] = i;
  }
  while (!small.empty()) {
    const int s = small.back(), l = large.back();
    small.pop_back();
    alias[s] = l;
    left[l] -= 16 - left[s];
    if (left[l] < 16) {
      large.pop_back();
      small.push_back(l);
    }
  }
  std::array<size_t, 256> classes{};
  for (int slot = 0; slot < 256; ++slot) {
    const int bucket = slot / 16;
    divider[bucket] = alias[bucket] == bucket ? 16 : left[bucket];
    classes[slot] = static_cast<size_t>(
        slot % 16 < divider[bucket] ? bucket : alias[bucket]);
  }
  return classes;
}

void check_alias_table(const Frequencies& frequencies) {
  const AliasTable table = AliasTable::build(frequencies);
  const auto expected = classes_by_document(frequencies);
  std::vector<std::set<uint32_t>> ranks(16);
  uint32_t seen[16] = {};
  for (uint32_t slot = 0; slot < 256; ++slot) {
    const uint32_t bucket = slot / 16;
    const uint32_t entry =
        bucket + (slot % 16 >= table.divider[bucket] ? 16 : 0);
    const size_t symbol = table.symbol[entry];
    const uint32_t rank = (slot + table.rank_shift[entry]) & 255;
    ASSERT_EQ(symbol, expected[slot]);
    ASSERT_EQ(rank, seen[symbol]++);  // how many slots of the class precede
    ASSERT_EQ(table.frequency[entry], frequencies[symbol]);
    ranks[symbol].insert(rank);
  }
  for (size_t i = 0; i < 16; ++i) {
    const uint32_t own = i < frequencies.size() ? frequencies[i] : 0;
    ASSERT_EQ(seen[i], own);
    ASSERT_EQ(ranks[i].size(), own);
    if (own > 0) {
      ASSERT_EQ(*ranks[i].rbegin(), own - 1);
    }
    ASSERT_EQ(table.symbol_frequency[i], own);
  }
}

TEST(AliasTable, EachClassOwnsItsFrequencyOfSlots) {
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    check_alias_table(
        testing::random_frequencies(&random, 2 + random() % 15, 256));
  }
}

TEST(AliasTable, Extremes) {
  check_alias_table({255, 1});
  check_alias_table({1, 255});
  check_alias_table({128, 128});
  check_alias_table(Frequencies(16, 16));
  check_alias_table({1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 241});
  check_alias_table({0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1});
}

TEST(SlotTable, EachClassOwnsARunOfSlots) {
  std::mt19937 random(4);
  for (int round = 0; round < 300; ++round) {
    const auto frequencies =
        testing::random_frequencies(&random, 2 + random() % 255, 4096);
    const auto table = build_slot_table(frequencies);
    ASSERT_EQ(table.size(), 4096u);
    size_t slot = 0;
    for (uint32_t symbol = 0; symbol < frequencies.size(); ++symbol) {
      for (uint32_t rank = 0; rank < frequencies[symbol]; ++rank, ++slot) {
        ASSERT_EQ(table[slot] >> 24, symbol);
        ASSERT_EQ(table[slot] >> 12 & 4095, frequencies[symbol]);
        ASSERT_EQ(table[slot] & 4095, rank);
      }
    }
  }
}

}  // namespace
}  // namespace mlx_entropy
