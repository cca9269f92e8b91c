// Bytes that anybody may have written: every truncation and every change of
// one byte of small matrices is either refused or runs without harm, which is
// what the sanitizers watch. The checksum is put right each time, because
// whoever can change a byte can also do that.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "base/bits.h"
#include "base/thread_pool.h"
#include "format/writer.h"
#include "support/bytes.h"
#include "support/exercise.h"
#include "support/matrices.h"

namespace {

// Bytes asked of operator new since the last reset.
std::atomic<size_t> allocated{0};

void* counted(size_t size, size_t alignment) {
  allocated += size;
  void* const p = std::aligned_alloc(
      alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(size_t size) { return counted(size, 16); }
void* operator new(size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<size_t>(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace mlx_entropy {
namespace {

using testing::Bytes;

struct Sample {
  std::string name;
  Bytes bytes;
};

// One small matrix of each kind; both coders, predicted and stored biases,
// palettes, exceptions, several tiles.
std::vector<Sample> samples() {
  std::vector<Sample> samples;
  auto predicted = testing::random_affine(1, 3, 64, 4, 32,
                                          FloatType::kFloat16, false);
  samples.push_back({"affine", testing::encode(&predicted, 2)});
  auto stored = testing::random_affine(2, 2, 64, 3, 64, FloatType::kBfloat16,
                                       true);
  samples.push_back({"stored", testing::encode(&stored, 1)});
  const auto floats = testing::random_floats(3, 4, 48, FloatType::kFloat32);
  samples.push_back({"float", testing::encode(floats, 0)});
  Bytes symbols = testing::random_symbols(4, 600, 6, 0.4);
  for (uint8_t& symbol : symbols) symbol = static_cast<uint8_t>(symbol * 50);
  symbols[100] = 77;
  samples.push_back({"palette", testing::encode_symbols(symbols, 6, 100, 0)});
  samples.push_back(
      {"wide", testing::encode_symbols(
                   testing::random_symbols(5, 3000, 40, 0.9), 3, 1000, 0)});
  return samples;
}

class Hostile : public ::testing::TestWithParam<Sample> {
 protected:
  // One thread, because waking workers for a few hundred bytes takes longer
  // than the work.
  void SetUp() override { ThreadPool::instance().resize(1); }
  void TearDown() override { ThreadPool::instance().resize(0); }
};

TEST_P(Hostile, TheSampleIsValid) {
  bool accepted = false;
  EXPECT_EQ(testing::exercise(GetParam().bytes, &accepted), "");
  EXPECT_TRUE(accepted);
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

TEST_P(Hostile, EveryByteChanged) {
  const Bytes& bytes = GetParam().bytes;
  size_t runs = 0;
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int change = 1; change < 256; ++change) {
      Bytes mutated = bytes;
      mutated[at] ^= static_cast<uint8_t>(change);
      testing::fix_checksum(&mutated);
      allocated = 0;
      const auto result = validate(mutated.data(), mutated.size());
      // Parsed planes, decode tables and buffers of one step; nothing that a
      // header could make larger.
      ASSERT_LT(allocated, size_t{1} << 17) << at << " ^ " << change;
      if (!result.ok()) continue;
      bool accepted = false;
      ASSERT_EQ(testing::exercise(mutated, &accepted), "")
          << at << " ^ " << change;
      ASSERT_TRUE(accepted);
      ++runs;
    }
  }
  RecordProperty("accepted", std::to_string(runs));
}

// Words that are sizes or counts somewhere, at every place.
TEST_P(Hostile, EveryWordReplaced) {
  const Bytes& bytes = GetParam().bytes;
  constexpr uint64_t kWords[] = {0x7fffffff, 0xffffffff, 0x80000000,
                                 0x04000000, 0x40000000, 0x00010000};
  for (size_t at = 0; at + 4 <= bytes.size(); ++at) {
    for (uint64_t word : kWords) {
      Bytes mutated = bytes;
      store(mutated.data() + at, static_cast<uint32_t>(word));
      testing::fix_checksum(&mutated);
      allocated = 0;
      const auto result = validate(mutated.data(), mutated.size());
      ASSERT_LT(allocated, size_t{1} << 17) << at << " = " << word;
      if (!result.ok()) continue;
      bool accepted = false;
      ASSERT_EQ(testing::exercise(mutated, &accepted), "")
          << at << " = " << word;
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
  allocated = 0;
  const auto result = validate(bytes.data(), bytes.size());
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_LT(allocated, size_t{1} << 17);
  Bytes row(header.cols);
  decode_dense(*result.value(), {64, 65}, row.data());
  EXPECT_EQ(row, Bytes(header.cols, 7));
}

}  // namespace
}  // namespace mlx_entropy
