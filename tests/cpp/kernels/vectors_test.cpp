// The golden files, on every target: what one architecture has written,
// another reads, and the same bytes come out.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/matrix_ops.h"
#include "quant/affine.h"
#include "support/bytes.h"
#include "support/sha256.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;

const std::filesystem::path kVectors = MLX_ENTROPY_VECTORS;

Bytes read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// Just enough of JSON: the text after the first `"key": ` from `at` on.
class Manifest {
 public:
  Manifest() {
    const Bytes bytes = read_file(kVectors / "manifest.json");
    text_.assign(bytes.begin(), bytes.end());
  }

  size_t find(const std::string& key, size_t at) const {
    const std::string quoted = "\"" + key + "\": ";
    const size_t found = text_.find(quoted, at);
    EXPECT_NE(found, std::string::npos) << key;
    return found == std::string::npos ? 0 : found + quoted.size();
  }

  std::string string(const std::string& key, size_t at) const {
    const size_t begin = find(key, at) + 1;
    return text_.substr(begin, text_.find('"', begin) - begin);
  }

 private:
  std::string text_;
};

struct Array {
  std::string name;
  Bytes bytes;
};

std::vector<Array> decode(const PreparedMatrix& matrix) {
  const MatrixHeader& header = matrix.header();
  const RowRange rows{0, header.rows};
  const size_t count = size_t{header.rows} * header.cols;
  if (header.scheme != Scheme::kAffine) {
    Bytes values(count * static_cast<size_t>(header.bits) / 8);
    decode_dense(matrix, rows, values.data());
    const bool floats = header.scheme == Scheme::kFloat;
    return {{floats ? "floats" : "symbols", values}};
  }
  Bytes packed(count * static_cast<size_t>(header.bits) / 8);
  Bytes scales(count / header.group_size *
               static_cast<size_t>(bit_width(header.float_type)) / 8);
  Bytes biases(scales.size());
  decode_affine(matrix, rows, packed.data(), scales.data(), biases.data());
  std::vector<uint32_t> codes(count);
  unpack_codes(packed.data(), header.bits, 0, count, codes.data());
  return {{"codes", Bytes(codes.begin(), codes.end())},
          {"scales", scales},
          {"biases", biases}};
}

std::vector<std::filesystem::path> files(const char* kind) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(kVectors / kind)) {
    paths.push_back(entry.path());
  }
  return paths;
}

class Vectors : public ::testing::Test {
 protected:
  void TearDown() override {
    ASSERT_TRUE(set_target(available_targets().front()->name).ok());
  }
  Manifest manifest_;
};

TEST_F(Vectors, Sha256) {
  EXPECT_EQ(testing::sha256({'a', 'b', 'c'}),
            "ba7816bf8f01cfea414140de5dae2223"
            "b00361a396177a9cb410ff61f20015ad");
}

TEST_F(Vectors, ValidOnesDecodeToTheirArrays) {
  const size_t valid = manifest_.find("valid", 0);
  const auto paths = files("valid");
  ASSERT_GT(paths.size(), 50u);
  for (const auto& path : paths) {
    const size_t entry = manifest_.find(path.stem(), valid);
    const Bytes coded = read_file(path);
    for (const KernelTable* target : available_targets()) {
      ASSERT_TRUE(set_target(target->name).ok());
      const auto result = validate(coded.data(), coded.size());
      ASSERT_TRUE(result.ok()) << path << " " << result.status().message();
      for (const Array& array : decode(*result.value())) {
        const size_t at = manifest_.find(array.name, entry);
        EXPECT_EQ(testing::sha256(array.bytes), manifest_.string("sha256", at))
            << path << " " << array.name << " on " << target->name;
      }
    }
  }
}

// With what message, the Python tests check.
TEST_F(Vectors, InvalidOnesAreRefused) {
  for (const auto& path : files("invalid")) {
    const Bytes coded = read_file(path);
    for (const KernelTable* target : available_targets()) {
      ASSERT_TRUE(set_target(target->name).ok());
      EXPECT_FALSE(validate(coded.data(), coded.size()).ok()) << path;
    }
  }
}

}  // namespace
}  // namespace mlx_entropy
