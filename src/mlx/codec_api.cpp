#include "mlx/codec_api.h"

#include <cstring>
#include <new>
#include <numeric>

#include "codec/rans/model.h"
#include "convert/encode_matrix.h"
#include "convert/transcode.h"
#include "kernels/matrix_ops.h"
#include "mlx/allocator.h"
#include "mlx/arrays.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "mlx/validated.h"
#include "quant/dense.h"

namespace mlx_entropy {
namespace {

constexpr int64_t kMaxDimension = INT32_MAX;

// Evaluated and row-contiguous, on the CPU.
void make_dense(mx::array& array) {
  array = mx::contiguous(array, false, mx::Device::cpu);
  array.eval();
}

// A few coded bytes can stand for more weights than there is memory, and MLX
// does not look at what its allocator returns.
mx::array empty(mx::Shape shape, mx::Dtype dtype) {
  size_t bytes = mx::size_of(dtype);
  for (int n : shape) bytes *= static_cast<size_t>(n);
  mx::allocator::Data data = mx::allocator::malloc(bytes);
  if (data.buffer().ptr() == nullptr && bytes > 0) throw std::bad_alloc();
  return mx::array(std::move(data), std::move(shape), dtype);
}

// The coded matrix that `encode` writes to the memory that it is given.
template <class Encode>
mx::array coded_array(const char* op, const Encode& encode) {
  std::optional<mx::array> out;
  const Status status = encode([&](size_t size) {
    if (size > static_cast<size_t>(kMaxDimension)) {
      fail(op, "the coded matrix exceeds 2 GiB; code it in row ranges");
    }
    out = empty({static_cast<int>(size)}, mx::uint8);
    return out->data<uint8_t>();
  });
  if (!status.ok()) fail(op, status.message());
  return *out;
}

uint32_t leading_rows(const mx::array& array) {
  return static_cast<uint32_t>(array.size() /
                               static_cast<size_t>(array.shape(-1)));
}

EncodeOptions options(const char* op, int tile_rows, int block_rows = 0) {
  if (tile_rows < 0) fail(op, "tile_rows must not be negative");
  if (block_rows < 0) fail(op, "block_rows must not be negative");
  EncodeOptions options;
  options.tile_rows = static_cast<uint32_t>(tile_rows);
  options.block_rows = static_cast<uint32_t>(block_rows);
  return options;
}

std::shared_ptr<const PreparedMatrix> open(const char* op, mx::array& coded) {
  if (coded.dtype() != mx::uint8 || coded.ndim() != 1) {
    fail(op,
         "coded must be a uint8 vector, got shape " + to_string(coded.shape()));
  }
  make_dense(coded);
  auto matrix = validated(CodedBytes(coded));
  if (!matrix.ok()) fail(op, matrix.status().message());
  return matrix.value();
}

std::shared_ptr<const PreparedMatrix> open(const char* op, mx::array& coded,
                                           Scheme scheme) {
  auto matrix = open(op, coded);
  if (matrix->header().scheme != scheme) {
    fail(op, "the coded matrix is of another scheme");
  }
  return matrix;
}

RowRange row_range(const char* op, const MatrixHeader& header, int64_t start,
                   std::optional<int64_t> stop) {
  const int64_t rows = header.rows;
  const int64_t end = stop.value_or(rows);
  if (start < 0 || end > rows || start > end) {
    fail(op, "rows " + std::to_string(start) + " to " + std::to_string(end) +
                 " are not within " + std::to_string(rows));
  }
  if (end - start > kMaxDimension) {
    fail(op, "more than 2^31 - 1 rows at once; decode them in ranges");
  }
  return {static_cast<uint32_t>(start), static_cast<uint32_t>(end)};
}

CodedInfo info(const Container& container) {
  const MatrixHeader& header = container.header();
  constexpr const char* kSchemes[] = {"symbols", "affine", "float"};
  CodedInfo info{kSchemes[static_cast<int>(header.scheme)],
                 !header.any_coded()              ? "raw"
                 : header.coder == Coder::kTree   ? "tree"
                 : header.coder == Coder::kRans16 ? "rans16"
                 : header.coder == Coder::kRans32 ? "rans32"
                                                  : "tree",
                 header.rows,
                 header.cols,
                 header.bits,
                 header.group_size,
                 dtype(header.float_type),
                 header.tile_rows,
                 header.tiles,
                 container.size(),
                 {}};
  for (size_t p = 0; p < header.planes.size(); ++p) {
    const Plane& plane = header.planes[p];
    info.planes.push_back({plane_name(plane.kind), plane.classes(),
                           plane.raw_bits, plane.base, plane.frequencies,
                           container.exceptions(p),
                           header.values(plane, header.rows)});
  }
  return info;
}

}  // namespace

RansTable RansTable::from_counts(const std::vector<uint64_t>& counts) {
  constexpr const char* kOp = "RANSTable.from_counts";
  if (counts.empty() || counts.size() > 256) {
    fail(kOp, "expected counts of 1 to 256 symbols, got " +
                  std::to_string(counts.size()));
  }
  uint64_t sum = 0;
  for (uint64_t count : counts) {
    if (__builtin_add_overflow(sum, count, &sum)) fail(kOp, "counts overflow");
  }
  if (sum == 0) fail(kOp, "all counts are zero");
  return {table_from_counts(counts)};
}

int RansTable::precision_bits() const {
  const bool narrow =
      frequencies.size() <= static_cast<size_t>(kRans16.max_classes);
  return (narrow ? kRans16 : kRans32).precision_bits;
}

double RansTable::cost(const std::vector<uint64_t>& counts) const {
  if (counts.size() > frequencies.size()) {
    fail("RANSTable.cost", "more counts than symbols");
  }
  uint64_t total = 0;
  double bits = coded_bits(counts, std::span(frequencies).first(counts.size()),
                           precision_bits());
  for (size_t i = 0; i < counts.size(); ++i) {
    total += counts[i];
    if (frequencies[i] == 0) {
      bits += 8.0 * kExceptionSize * static_cast<double>(counts[i]);
    }
  }
  return total == 0 ? 0.0 : bits / static_cast<double>(total);
}

mx::array entropy_encode(mx::array symbols, const RansTable* table,
                         int tile_rows) {
  constexpr const char* kOp = "entropy_encode";
  if (symbols.dtype() != mx::uint8 || symbols.ndim() == 0 ||
      symbols.size() == 0) {
    fail(kOp, "symbols must be a non-empty uint8 array, got shape " +
                  to_string(symbols.shape()));
  }
  make_dense(symbols);
  EncodeOptions encode_options = options(kOp, tile_rows);
  if (table != nullptr) encode_options.frequencies = table->frequencies;
  const SymbolSource source(symbols.data<uint8_t>(), leading_rows(symbols),
                            static_cast<uint32_t>(symbols.shape(-1)));
  return coded_array(kOp, [&](const Memory& memory) {
    return encode_matrix(source, encode_options, memory);
  });
}

mx::array entropy_decode(mx::array coded, int64_t row_start,
                         std::optional<int64_t> row_stop) {
  constexpr const char* kOp = "entropy_decode";
  const auto matrix = open(kOp, coded, Scheme::kSymbols);
  const RowRange rows = row_range(kOp, matrix->header(), row_start, row_stop);
  mx::array out = empty({static_cast<int>(rows.end - rows.begin),
                         static_cast<int>(matrix->header().cols)},
                        mx::uint8);
  decode_dense(*matrix, rows, out.data<void>());
  return out;
}

mx::array encode_affine(mx::array weight, mx::array scales, mx::array biases,
                        int group_size, int bits, int tile_rows,
                        int block_rows) {
  constexpr const char* kOp = "encode_affine";
  const bool known_bits = (bits >= 2 && bits <= 6) || bits == 8;
  const bool known_group =
      group_size == 32 || group_size == 64 || group_size == 128;
  if (!known_bits) fail(kOp, "bits must be 2, 3, 4, 5, 6 or 8");
  if (!known_group) fail(kOp, "group_size must be 32, 64 or 128");
  if (weight.dtype() != mx::uint32 || weight.ndim() == 0 ||
      weight.size() == 0) {
    fail(kOp, "weight must be a non-empty uint32 array, got shape " +
                  to_string(weight.shape()));
  }
  const FloatType type = float_type(scales.dtype());
  if (type == FloatType::kNone || biases.dtype() != scales.dtype()) {
    fail(kOp, "scales and biases must both be float32, float16 or bfloat16");
  }
  const int64_t cols = int64_t{weight.shape(-1)} * 32 / bits;
  mx::Shape expected = weight.shape();
  expected.back() = static_cast<int>(cols / group_size);
  if (cols % group_size != 0 || scales.shape() != expected ||
      biases.shape() != expected) {
    fail(kOp, "weight " + to_string(weight.shape()) + " of " +
                  std::to_string(bits) + " bits needs scales and biases " +
                  to_string(expected) + ", got " + to_string(scales.shape()) +
                  " and " + to_string(biases.shape()));
  }
  make_dense(weight);
  make_dense(scales);
  make_dense(biases);
  AffineArrays arrays;
  arrays.rows = leading_rows(weight);
  arrays.cols = static_cast<uint32_t>(cols);
  arrays.bits = bits;
  arrays.group_size = static_cast<uint32_t>(group_size);
  arrays.float_type = type;
  arrays.codes = weight.data<uint32_t>();
  arrays.scales = scales.data<void>();
  arrays.biases = biases.data<void>();
  const EncodeOptions encode_options = options(kOp, tile_rows, block_rows);
  return coded_array(kOp, [&](const Memory& memory) {
    return encode_affine(arrays, encode_options, memory);
  });
}

std::vector<mx::array> decode_affine(mx::array coded, int64_t row_start,
                                     std::optional<int64_t> row_stop) {
  constexpr const char* kOp = "decode_affine";
  const auto matrix = open(kOp, coded, Scheme::kAffine);
  const MatrixHeader& header = matrix->header();
  const RowRange rows = row_range(kOp, header, row_start, row_stop);
  const int n = static_cast<int>(rows.end - rows.begin);
  const int words = static_cast<int>(uint64_t{header.cols} * header.bits / 32);
  const int groups = static_cast<int>(header.cols / header.group_size);
  std::vector<mx::array> out = {empty({n, words}, mx::uint32),
                                empty({n, groups}, dtype(header.float_type)),
                                empty({n, groups}, dtype(header.float_type))};
  decode_affine(*matrix, rows, out[0].data<uint8_t>(), out[1].data<void>(),
                out[2].data<void>());
  return out;
}

mx::array encode_float(mx::array weight, int tile_rows, int block_rows) {
  constexpr const char* kOp = "encode_float";
  const FloatType type = float_type(weight.dtype());
  if (type == FloatType::kNone || weight.ndim() == 0 || weight.size() == 0) {
    fail(kOp, "weight must be a non-empty float32, float16 or bfloat16 array");
  }
  make_dense(weight);
  const FloatSource source(weight.data<void>(), type, leading_rows(weight),
                           static_cast<uint32_t>(weight.shape(-1)));
  const EncodeOptions encode_options = options(kOp, tile_rows, block_rows);
  return coded_array(kOp, [&](const Memory& memory) {
    return encode_matrix(source, encode_options, memory);
  });
}

mx::array decode_float(mx::array coded, int64_t row_start,
                       std::optional<int64_t> row_stop) {
  constexpr const char* kOp = "decode_float";
  const auto matrix = open(kOp, coded, Scheme::kFloat);
  const MatrixHeader& header = matrix->header();
  const RowRange rows = row_range(kOp, header, row_start, row_stop);
  mx::array out = empty(
      {static_cast<int>(rows.end - rows.begin), static_cast<int>(header.cols)},
      dtype(header.float_type));
  decode_dense(*matrix, rows, out.data<void>());
  return out;
}

mx::array transcode_array(mx::array coded, const std::string& codec,
                          std::optional<double> pass_cost) {
  constexpr const char* kOp = "transcode";
  if (pass_cost && (codec != "tree" || !(*pass_cost >= 0))) {
    fail(kOp, "pass_cost is for codec \"tree\", and not negative");
  }
  EncodeOptions options;
  const auto matrix = open(kOp, coded);
  const Transcoder transcoder(*matrix);
  if (codec == "auto") {
    const CodecChoice best = rank_codecs(transcoder, machine_model()).front();
    options.codec = best.codec;
    options.pass_cost = best.pass_cost;
  } else if (codec == "tree" || codec == "flat") {
    options.codec = Codec::kTree;
    options.pass_cost = codec == "flat" ? kFlatPassCost : pass_cost;
  } else if (codec != "rans") {
    fail(kOp, "codec must be rans, tree, flat or auto, got " + codec);
  }
  const bool is_tree = matrix->header().coder == Coder::kTree;
  const bool same =
      options.codec == Codec::kRans ? !is_tree : is_tree && codec == "auto";
  if (same) return coded;
  const mx::array out = coded_array(kOp, [&](const Memory& memory) {
    return transcoder.encode(options, memory);
  });
  // What we have just written needs no decoding to be trusted.
  trust(CodedBytes(out));
  return out;
}

std::vector<CodecChoice> rank_codecs_array(mx::array coded) {
  const auto matrix = open("rank_codecs", coded);
  return rank_codecs(Transcoder(*matrix), machine_model());
}

CodedInfo validate_array(mx::array coded) {
  return info(open("validate", coded)->container());
}

CodedInfo describe_array(mx::array coded) {
  constexpr const char* kOp = "describe";
  if (coded.dtype() != mx::uint8 || coded.ndim() != 1) {
    fail(kOp, "coded must be a uint8 vector");
  }
  make_dense(coded);
  auto container = Container::parse(coded.data<uint8_t>(), coded.nbytes());
  if (!container.ok()) fail(kOp, container.status().message());
  return info(container.value());
}

std::vector<std::pair<std::string, double>> plane_entropies_array(
    mx::array coded) {
  const auto matrix = open("plane_entropies", coded);
  const std::vector<double> bits = plane_entropies(*matrix);
  std::vector<std::pair<std::string, double>> out;
  for (size_t p = 0; p < bits.size(); ++p) {
    out.emplace_back(plane_name(matrix->header().planes[p].kind), bits[p]);
  }
  return out;
}

}  // namespace mlx_entropy
