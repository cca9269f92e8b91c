#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "base/bits.h"
#include "codec/rans/decode.h"
#include "codec/rans/encode.h"
#include "codec/rans/model.h"
#include "support/random_frequencies.h"

namespace mlx_entropy {
namespace {

struct Section {
  std::vector<uint16_t> frequencies;
  std::vector<uint8_t> symbols;  // whole steps
};

// Symbols distributed as the table says, so that every class occurs.
Section random_section(std::mt19937* random, Coder coder, size_t classes,
                       size_t steps) {
  Section section;
  const uint32_t total = coder == Coder::kRans16 ? 256 : 4096;
  section.frequencies = testing::random_frequencies(random, classes, total);
  std::discrete_distribution<int> draw(section.frequencies.begin(),
                                       section.frequencies.end());
  section.symbols.resize(steps * kLanes);
  for (uint8_t& symbol : section.symbols) {
    symbol = static_cast<uint8_t>(draw(*random));
  }
  return section;
}

struct Coded {
  std::vector<uint8_t> states;
  std::vector<uint8_t> stream;  // with the padding of the format
  size_t stream_bytes;
};

Coded encode(Coder coder, const std::vector<Section>& sections) {
  size_t symbols = 0;
  for (const Section& section : sections) symbols += section.symbols.size();
  StreamEncoder encoder(coder, symbols);
  for (size_t i = sections.size(); i-- > 0;) {
    encoder.push_section(EncoderTable(sections[i].frequencies, coder),
                         sections[i].symbols.data(),
                         sections[i].symbols.size() / kLanes);
  }
  Coded coded;
  coded.states = encoder.states();
  coded.stream.assign(encoder.stream().begin(), encoder.stream().end());
  coded.stream_bytes = coded.stream.size();
  return coded;
}

// Decodes all sections; true if they and the end are as they must be. The
// scalar decoder may not read past the stream, which sanitizers check.
template <class State, class Table, class Step>
bool decodes(const Coded& coded, const std::vector<Section>& sections,
             const Table& make_table, const Step& step, State initial) {
  State states[kLanes];
  for (size_t lane = 0; lane < kLanes; ++lane) {
    states[lane] = load<State>(&coded.states[lane * sizeof(State)]);
    if (states[lane] < initial) return false;
  }
  const uint8_t* stream = coded.stream.data();
  for (const Section& section : sections) {
    const auto table = make_table(section.frequencies);
    for (size_t at = 0; at < section.symbols.size(); at += kLanes) {
      uint8_t out[kLanes];
      stream = step(states, stream, table, out);
      if (!std::equal(out, out + kLanes, &section.symbols[at])) return false;
    }
  }
  for (State state : states) {
    if (state != initial) return false;
  }
  return stream == coded.stream.data() + coded.stream_bytes;
}

bool round_trip(Coder coder, const std::vector<Section>& sections) {
  const Coded coded = encode(coder, sections);
  if (coder == Coder::kRans16) {
    return decodes<uint16_t>(
        coded, sections, [](const auto& f) { return AliasTable::build(f); },
        [](auto* x, const uint8_t* p, const AliasTable& t, uint8_t* out) {
          return decode_step16(x, p, t, out);
        },
        static_cast<uint16_t>(kRans16.initial_state));
  }
  return decodes<uint32_t>(
      coded, sections, [](const auto& f) { return build_slot_table(f); },
      [](auto* x, const uint8_t* p, const auto& t, uint8_t* out) {
        return decode_step32(x, p, t.data(), out);
      },
      kRans32.initial_state);
}

class Rans : public ::testing::TestWithParam<Coder> {};

TEST_P(Rans, RoundTrips) {
  std::mt19937 random(5);
  const size_t most = GetParam() == Coder::kRans16 ? 16 : 256;
  for (int round = 0; round < 200; ++round) {
    const size_t classes = 2 + random() % (most - 1);
    const Section section =
        random_section(&random, GetParam(), classes, random() % 40);
    ASSERT_TRUE(round_trip(GetParam(), {section})) << round;
  }
}

TEST_P(Rans, SectionsShareOneStream) {
  std::mt19937 random(6);
  for (int round = 0; round < 50; ++round) {
    std::vector<Section> sections;
    for (size_t i = 0; i < 4; ++i) {
      sections.push_back(
          random_section(&random, GetParam(), 2 + random() % 15, 1 + i));
    }
    ASSERT_TRUE(round_trip(GetParam(), sections)) << round;
  }
}

// The rarest class all the time: a unit of stream for nearly every symbol.
TEST_P(Rans, WorstCase) {
  const uint16_t total = GetParam() == Coder::kRans16 ? 256 : 4096;
  Section section;
  section.frequencies = {static_cast<uint16_t>(total - 1), 1};
  section.symbols.assign(100 * kLanes, 1);
  ASSERT_TRUE(round_trip(GetParam(), {section}));
  section.symbols.assign(100 * kLanes, 0);
  ASSERT_TRUE(round_trip(GetParam(), {section}));
}

TEST_P(Rans, NothingToCode) {
  const Coded coded = encode(GetParam(), {});
  EXPECT_EQ(coded.stream_bytes, 0u);
  EXPECT_TRUE(round_trip(GetParam(), {}));
}

TEST_P(Rans, SizeIsTheInformation) {
  std::mt19937 random(7);
  const int precision = GetParam() == Coder::kRans16 ? 8 : 12;
  const Section section = random_section(&random, GetParam(), 12, 4000);
  std::vector<uint64_t> counts(section.frequencies.size(), 0);
  for (uint8_t symbol : section.symbols) ++counts[symbol];
  const double bits = coded_bits(counts, section.frequencies, precision);
  const Coded coded = encode(GetParam(), {section});
  const auto stored =
      8.0 * static_cast<double>(coded.stream_bytes + coded.states.size());
  const double states = 8.0 * static_cast<double>(coded.states.size());
  EXPECT_GT(stored, bits);
  // 16-bit states lose a little to the coarse renormalization.
  EXPECT_LT(stored,
            bits * (GetParam() == Coder::kRans16 ? 1.004 : 1.0005) + states);
}

INSTANTIATE_TEST_SUITE_P(Coders, Rans,
                         ::testing::Values(Coder::kRans16, Coder::kRans32));

TEST(RansLanes, OrderOfRefillsIsAPermutation) {
  std::vector<bool> seen(kLanes, false);
  for (size_t order = 0; order < kLanes; ++order) {
    ASSERT_LT(rans16_lane(order), kLanes);
    seen[rans16_lane(order)] = true;
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true),
            static_cast<long>(kLanes));
}

}  // namespace
}  // namespace mlx_entropy
