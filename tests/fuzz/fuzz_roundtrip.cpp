// Any matrix: what is encoded decodes to the same bits on every target.
//
//   fuzz_roundtrip -max_len=4096 CORPUS
//
// The first bytes choose scheme, codec, types, shape and tiles; the rest is
// content, repeated where there is too little of it. What is decoded from one
// codec is coded with the other as well.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "convert/encode_matrix.h"
#include "convert/transcode.h"
#include "kernels/kernels.h"
#include "kernels/matrix_ops.h"
#include "support/exercise.h"
#include "support/matrices.h"

namespace {

using namespace mlx_entropy;
using testing::Bytes;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint32_t choice(uint32_t count) {
    return at_ < size_ ? data_[at_++] % count : 0;
  }
  Bytes content(size_t count) const {
    Bytes bytes(count, 0);
    const size_t left = size_ - at_;
    for (size_t i = 0; i < count && left > 0; ++i) {
      bytes[i] = data_[at_ + i % left];
    }
    return bytes;
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

void check_on_targets(const Bytes& coded, const Bytes& arrays) {
  for (const KernelTable* target : available_targets()) {
    if (!set_target(target->name).ok()) fail("cannot set the target");
    const auto matrix = validate(coded.data(), coded.size());
    if (!matrix.ok()) fail(matrix.status().message());
    if (testing::decode_all(*matrix.value()) != arrays) {
      fail(std::string(target->name) + " decodes something else");
    }
    if (matrix.value()->header().scheme == Scheme::kSymbols) continue;
    const std::string what = testing::check_products(*matrix.value());
    if (!what.empty()) fail(std::string(target->name) + ": " + what);
  }
}

void check(const Bytes& coded, const Bytes& arrays) {
  check_on_targets(coded, arrays);
  const auto matrix = validate(coded.data(), coded.size());
  EncodeOptions options;
  if (matrix.value()->header().coder != Coder::kTree) {
    options.codec = Codec::kTree;
  }
  std::vector<uint8_t> other;
  const Status status =
      Transcoder(*matrix.value()).encode(options, memory_of(&other));
  if (!status.ok()) fail(status.message());
  check_on_targets(other, arrays);
}

void check_symbols(Input input, const EncodeOptions& options) {
  const uint32_t rows = 1 + input.choice(40), cols = 1 + input.choice(130);
  EncodeOptions with_table = options;
  if (const uint32_t classes = input.choice(64); classes > 0) {
    std::vector<uint64_t> counts(classes);
    for (uint64_t& count : counts) count = input.choice(256);
    counts[0] += 1;
    with_table.frequencies = table_from_counts(counts);
  }
  const Bytes symbols = input.content(size_t{rows} * cols);
  const auto coded =
      encode_matrix(SymbolSource(symbols.data(), rows, cols), with_table);
  if (!coded.ok()) fail(coded.status().message());
  check(coded.value(), symbols);
}

void check_floats(Input input, FloatType type, const EncodeOptions& options) {
  const uint32_t rows = 1 + input.choice(40), cols = 1 + input.choice(130);
  const Bytes values = input.content(size_t{rows} * cols * bit_width(type) / 8);
  const auto coded =
      encode_matrix(FloatSource(values.data(), type, rows, cols), options);
  if (!coded.ok()) fail(coded.status().message());
  check(coded.value(), values);
}

void check_affine(Input input, FloatType type, const EncodeOptions& options) {
  constexpr int kBits[] = {2, 3, 4, 5, 6, 8};
  AffineArrays arrays;
  arrays.bits = kBits[input.choice(6)];
  arrays.group_size = 32u << input.choice(3);
  arrays.float_type = type;
  arrays.rows = 1 + input.choice(20);
  arrays.cols = arrays.group_size * (1 + input.choice(4));
  const size_t weights = size_t{arrays.rows} * arrays.cols;
  const size_t code_bytes = weights * static_cast<size_t>(arrays.bits) / 8;
  const size_t group_bytes =
      weights / arrays.group_size * static_cast<size_t>(bit_width(type)) / 8;
  const Bytes all = input.content(code_bytes + 2 * group_bytes);
  // Groups come first, so that short inputs reach them.
  std::vector<uint32_t> codes(code_bytes / 4);
  std::memcpy(codes.data(), all.data() + 2 * group_bytes, code_bytes);
  arrays.codes = codes.data();
  arrays.scales = all.data();
  arrays.biases = all.data() + group_bytes;
  Bytes expected(all.begin() + static_cast<long>(2 * group_bytes), all.end());
  expected.insert(expected.end(), all.begin(),
                  all.begin() + static_cast<long>(2 * group_bytes));
  for (BiasMode mode : {BiasMode::kPredicted, BiasMode::kStored}) {
    const auto coded = encode_matrix(AffineSource(arrays, mode), options);
    if (!coded.ok()) fail(coded.status().message());
    check(coded.value(), expected);
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  ThreadPool::instance().resize(1);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr FloatType kTypes[] = {FloatType::kFloat32, FloatType::kFloat16,
                                  FloatType::kBfloat16};
  Input input(data, size);
  EncodeOptions options;
  options.tile_rows = input.choice(20);
  const uint32_t scheme = input.choice(3);
  const FloatType type = kTypes[input.choice(3)];
  if (const uint32_t tree = input.choice(4); tree > 0) {
    options.codec = Codec::kTree;
    if (tree > 1) options.pass_cost = tree == 2 ? 0.0 : 0.3;
  }
  if (scheme == 0) {
    check_symbols(input, options);
  } else if (scheme == 1) {
    check_floats(input, type, options);
  } else {
    check_affine(input, type, options);
  }
  return 0;
}
