#include "base/hash.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string_view>
#include <vector>

namespace mlx_entropy {
namespace {

uint64_t hash(std::string_view text) {
  return xxh64(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

// Values of the reference implementation (python-xxhash).
TEST(Hash, KnownTexts) {
  EXPECT_EQ(hash(""), 0xef46db3751d8e999);
  EXPECT_EQ(hash("a"), 0xd24ec4f1a98c6e5b);
  EXPECT_EQ(hash("abc"), 0x44bc2cf5ad770999);
  EXPECT_EQ(hash("message digest"), 0x066ed728fceeb3be);
  EXPECT_EQ(hash("Nobody inspects the spammish repetition"),
            0xfbcea83c8a378bf1);
}

// Every branch of the algorithm: stripes of 32, words of 8 and 4, bytes.
TEST(Hash, KnownAnswersOfEveryTail) {
  constexpr struct {
    size_t size;
    uint64_t hash;
  } kAnswers[] = {
      {0, 0xef46db3751d8e999},   {1, 0x1f25c8d0bc1f4bb6},
      {3, 0x31d2363f52e564c9},   {4, 0x9bb64b7d66ee9fda},
      {5, 0xc7608efddb7051fe},   {7, 0x9a7b149959ce60d8},
      {8, 0xdab99d95c6f90092},   {12, 0xd52e407833af5133},
      {15, 0x1b47cb8243cc8e32},  {16, 0x434850232b787be2},
      {31, 0xa2aa5f33cc4a6119},  {32, 0x23c3c17ef790fd97},
      {33, 0x50a7cfc7ba588784},  {40, 0xb620306b253d76b6},
      {63, 0x5e3e54b431c7493c},  {64, 0x0eb64b3ef6eeb01f},
      {65, 0xa383b724b2bd12f1},  {100, 0xa61f8d4c170fe531},
      {222, 0x8488aa61fc67f7eb}, {300, 0x240004dbee0ba6dc},
  };
  for (const auto& answer : kAnswers) {
    std::vector<uint8_t> bytes(answer.size);
    for (size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<uint8_t>(7 * i + 3);
    }
    EXPECT_EQ(xxh64(bytes.data(), bytes.size()), answer.hash) << answer.size;
  }
}

}  // namespace
}  // namespace mlx_entropy
