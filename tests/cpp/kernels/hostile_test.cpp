// Bytes that anybody may have written: every truncation and every change of
// one byte of small matrices is either refused or runs without harm, which is
// what the sanitizers watch. The checksum is put right each time, because
// whoever can change a byte can also do that.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "base/bits.h"
#include "base/thread_pool.h"
#include "format/writer.h"
#include "support/bytes.h"
#include "support/counting_new.h"
#include "support/exercise.h"
#include "support/matrices.h"
#include "support/sanitizers.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;

struct Sample {
  std::string name;
  Bytes bytes;
};

void PrintTo(const Sample& sample, std::ostream* out) { *out << sample.name; }

// Small matrices of each kind; both coders, predicted and stored biases, a
// palette, exceptions, several tiles.
std::vector<Sample> samples() {
  std::vector<Sample> samples;
  auto predicted =
      testing::random_affine(1, 7, 128, 2, 32, FloatType::kFloat16, false);
  samples.push_back({"predicted", testing::encode(&predicted, 4)});
  auto stored =
      testing::random_affine(2, 2, 64, 3, 64, FloatType::kBfloat16, true);
  samples.push_back({"stored", testing::encode(&stored, 1)});
  const auto floats = testing::random_floats(3, 4, 48, FloatType::kFloat32);
  samples.push_back({"floats", testing::encode(floats, 0)});
  Bytes symbols = testing::random_symbols(4, 600, 6, 0.4);
  for (uint8_t& symbol : symbols) symbol = static_cast<uint8_t>(symbol * 41);
  symbols[100] = 77;
  samples.push_back({"symbols", testing::encode_symbols(symbols, 6, 100, 0)});
  // A table makes it rans32, and symbols without a frequency exceptions.
  const Bytes wide = testing::random_symbols(5, 300, 30, 0.9);
  EncodeOptions options;
  options.frequencies = std::vector<uint16_t>(26, 157);
  options.frequencies->front() += 4096 - 26 * 157;
  samples.push_back(
      {"wide",
       encode_matrix(SymbolSource(wide.data(), 3, 100), options).value()});
  return samples;
}

// Bytes that hold raw bits: any value of them is valid.
std::vector<bool> raw_bytes(const Bytes& bytes) {
  const Container container =
      Container::parse(bytes.data(), bytes.size()).value();
  std::vector<bool> raw(bytes.size(), false);
  for (uint32_t t = 0; t < container.header().tiles; ++t) {
    const Tile tile = container.tile(t);
    for (size_t p = 0; p < container.header().planes.size(); ++p) {
      const TilePlane& plane = tile.planes[p];
      const auto begin = static_cast<size_t>(plane.raw - bytes.data());
      const size_t size =
          plane.steps() * raw_step_bytes(container.header().planes[p].raw_bits);
      std::fill_n(raw.begin() + static_cast<long>(begin), size, true);
    }
  }
  return raw;
}

class Hostile : public ::testing::TestWithParam<Sample> {
 protected:
  // One thread, because waking workers for a few hundred bytes takes longer
  // than the work.
  void SetUp() override {
    if (testing::kThreadSanitizer) GTEST_SKIP() << "one thread, many runs";
    ThreadPool::instance().resize(1);
  }
  void TearDown() override {
    ThreadPool::instance().resize(0);
    EXPECT_TRUE(set_target(available_targets().front()->name).ok());
  }
};

TEST_P(Hostile, TheSampleIsValid) {
  RecordProperty("bytes", static_cast<int>(GetParam().bytes.size()));
  bool accepted = false;
  EXPECT_EQ(testing::exercise(GetParam().bytes, &accepted), "");
  EXPECT_TRUE(accepted);
}

TEST(HostileSamples, CoverTheFormat) {
  bool wide = false, narrow = false, palette = false, exceptions = false,
       tiles = false, raw = false, predicted = false, stored = false;
  for (const Sample& sample : samples()) {
    const auto container =
        Container::parse(sample.bytes.data(), sample.bytes.size());
    ASSERT_TRUE(container.ok()) << sample.name;
    const MatrixHeader& header = container.value().header();
    wide |= header.coder == Coder::kRans32 && header.any_coded();
    narrow |= header.coder == Coder::kRans16 && header.any_coded();
    tiles |= header.tiles > 1;
    predicted |= header.planes.size() == 4;
    stored |= header.planes.size() == 3;
    for (size_t p = 0; p < header.planes.size(); ++p) {
      palette |= !header.planes[p].palette.empty();
      raw |= header.planes[p].raw_bits > 8;
      exceptions |= container.value().exceptions(p) > 0;
    }
  }
  EXPECT_TRUE(wide && narrow && palette && exceptions && tiles && raw &&
              predicted && stored)
      << wide << narrow << palette << exceptions << tiles << raw << predicted
      << stored;
}

TEST_P(Hostile, EveryTruncation) {
  const Bytes& bytes = GetParam().bytes;
  for (size_t size = 0; size < bytes.size(); ++size) {
    Bytes cut = testing::tight_copy(bytes.data(), size);
    ASSERT_FALSE(validate(cut.data(), cut.size()).ok()) << size;
    testing::fix_size(&cut);
    ASSERT_FALSE(validate(cut.data(), cut.size()).ok()) << size;
  }
}

// Each target in turn judges the bytes; all of them run what is accepted.
class Judge {
 public:
  // "" or what went wrong.
  std::string operator()(Bytes mutated) {
    const auto& targets = available_targets();
    if (!set_target(targets[++runs_ % targets.size()]->name).ok()) return "?";
    testing::fix_checksum(&mutated);
    testing::allocated_bytes = 0;
    const auto result = validate(mutated.data(), mutated.size());
    // Parsed planes, decode tables and buffers of one step; nothing that a
    // header could make larger.
    if (testing::allocated_bytes > size_t{1} << 17) return "large allocation";
    if (!result.ok()) return "";
    bool accepted = false;
    std::string what = testing::exercise(mutated, &accepted);
    if (what.empty() && !accepted) what = "refused the second time";
    return what;
  }

 private:
  size_t runs_ = 0;
};

TEST_P(Hostile, EveryByteChanged) {
  const Bytes& bytes = GetParam().bytes;
  const std::vector<bool> raw = raw_bytes(bytes);
  Judge judge;
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int change = 1; change < 256; change += raw[at] ? 85 : 1) {
      Bytes mutated = bytes;
      mutated[at] ^= static_cast<uint8_t>(change);
      ASSERT_EQ(judge(std::move(mutated)), "") << at << " ^ " << change;
    }
  }
}

// Words that are sizes or counts somewhere, at every place.
TEST_P(Hostile, EveryWordReplaced) {
  const Bytes& bytes = GetParam().bytes;
  Judge judge;
  for (size_t at = 0; at + 4 <= bytes.size(); ++at) {
    for (uint32_t word : {0x7fffffffu, 0xffffffffu, 0x80000000u, 0x40000000u,
                          0x04000000u, 0x00010000u}) {
      Bytes mutated = bytes;
      store(mutated.data() + at, word);
      ASSERT_EQ(judge(std::move(mutated)), "") << at << " = " << word;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Samples, Hostile, ::testing::ValuesIn(samples()),
                         [](const auto& tested) { return tested.param.name; });

// A few bytes may describe 2^40 weights, if they are all the same.
TEST(HostileHeader, HugeConstantMatrixCostsNothingToValidate) {
  MatrixHeader header;
  header.rows = 1u << 20;
  header.cols = 1u << 20;
  header.tile_rows = 64;
  header.tiles = 1u << 14;
  header.bits = 8;
  header.planes.emplace_back().frequencies = {256};
  header.planes[0].base = 7;
  TilePayload tile;
  tile.exception_counts = {0};
  const Bytes bytes =
      write_container(header, std::vector<TilePayload>(header.tiles, tile));
  testing::allocated_bytes = 0;
  const auto result = validate(bytes.data(), bytes.size());
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_LT(testing::allocated_bytes, size_t{1} << 17);
  Bytes row(header.cols);
  decode_dense(*result.value(), {64, 65}, row.data());
  EXPECT_EQ(row, Bytes(header.cols, 7));
}

}  // namespace
}  // namespace mlx_entropy
