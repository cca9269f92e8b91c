#include "mlx/coded_primitives.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "kernels/matrix_ops.h"
#include "mlx/arrays.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/coded_ops.h"
#include "mlx/ops.h"
#include "mlx/validated.h"

namespace mlx_entropy {
namespace {

constexpr const char* kGatherMatmul = "entropy_coded_gather_matmul";

[[noreturn]] void no_gpu(const char* op) {
  throw std::runtime_error("[" + std::string(op) +
                           "] runs on the CPU; give it a CPU stream");
}

// The matrix behind coded bytes, which must have the layer's shape.
std::shared_ptr<const PreparedMatrix> open(const char* op,
                                           const CodedBytes& coded, int rows,
                                           int cols) {
  auto matrix = validated(coded);
  if (!matrix.ok()) fail(op, matrix.status().message());
  const MatrixHeader& header = matrix.value()->header();
  if (header.scheme == Scheme::kSymbols) {
    fail(op, "the coded bytes hold symbols, not weights");
  }
  const bool rows_match = rows < 0 || static_cast<int64_t>(header.rows) == rows;
  if (!rows_match || static_cast<int64_t>(header.cols) != cols) {
    fail(op, "expected a coded matrix of shape " +
                 to_string({std::max(rows, 0), cols}) + ", got " +
                 to_string({static_cast<int>(header.rows),
                            static_cast<int>(header.cols)}));
  }
  return matrix.value();
}

// Allocates the output and schedules task(output) on the stream's thread; the
// caller of eval keeps the arrays' memory alive until then.
//
// What a task throws, MLX rethrows to whoever waits for the result, which may
// be a thread of a server that serves others as well. So nothing that comes
// with a request may make a task throw. What is left: coded bytes that do not
// fit the layer or are damaged, of which the loader has none (it validates
// what it loads), so that somebody has put them there since; and memory that
// runs out.
void dispatch(mx::Stream stream, const std::vector<mx::array>& inputs,
              mx::array& out, std::function<void(mx::array&)> task) {
  allocate(out);
  auto& encoder = mx::cpu::get_command_encoder(stream);
  for (const mx::array& input : inputs) encoder.set_input_array(input);
  encoder.set_output_array(out);
  encoder.dispatch([task = std::move(task), out = mx::array::unsafe_weak_copy(
                                                out)]() mutable { task(out); });
}

void check_only_x(const char* op, const std::vector<int>& argnums) {
  for (int argument : argnums) {
    if (argument == 1) {
      fail(op,
           "no derivative in the coded weights: train a LoRA adapter, or what "
           "`mlx-entropy restore` gives back");
    }
    if (argument == 2) fail(op, "no derivative in the indices");
  }
}

// Rows that int64 indices name, as stock MLX's take has it: those from -count
// to -1 are counted from the end. Where stock reads memory that is not its own,
// kOutOfRange. Not an error: nobody may be there to catch it.
std::vector<uint32_t> rows_to_take(const mx::array& indices, int64_t count) {
  std::vector<uint8_t> storage;
  const auto* const data =
      static_cast<const int64_t*>(dense_data(indices, &storage));
  std::vector<uint32_t> rows(indices.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t index = data[i] < 0 ? data[i] + count : data[i];
    const bool in_range = index >= 0 && index < count;
    rows[i] = in_range ? static_cast<uint32_t>(index) : kOutOfRange;
  }
  return rows;
}

// Blocks that int64 indices name, modulo their number as in stock MLX's
// gather_qmm and gather_mm (which read elsewhere where a remainder is
// negative).
std::vector<uint32_t> blocks_to_multiply(const mx::array& indices,
                                         int64_t count, size_t repeats) {
  std::vector<uint8_t> storage;
  const auto* const data =
      static_cast<const int64_t*>(dense_data(indices, &storage));
  std::vector<uint32_t> blocks;
  blocks.reserve(indices.size() * repeats);
  for (size_t i = 0; i < indices.size(); ++i) {
    const int64_t remainder = data[i] % count;
    const int64_t block = remainder < 0 ? remainder + count : remainder;
    blocks.insert(blocks.end(), repeats, static_cast<uint32_t>(block));
  }
  return blocks;
}

}  // namespace

void EntropyCodedMatmul::eval_cpu(const std::vector<mx::array>& inputs,
                                  std::vector<mx::array>& outputs) {
  dispatch(
      stream(), inputs, outputs[0],
      [x = mx::array::unsafe_weak_copy(inputs[0]),
       coded = CodedBytes(inputs[1]), rows = output_dims_](mx::array& y) {
        const int cols = x.shape(-1);
        const auto matrix = open("entropy_coded_matmul", coded, rows, cols);
        std::vector<uint8_t> storage;
        const void* const data = dense_data(x, &storage);
        const FloatType type = float_type(x.dtype());
        multiply(*matrix, {type, data}, x.size() / static_cast<size_t>(cols),
                 {type, y.data<void>()});
      });
}

void EntropyCodedMatmul::eval_gpu(const std::vector<mx::array>&,
                                  std::vector<mx::array>&) {
  no_gpu("entropy_coded_matmul");
}

std::vector<mx::array> EntropyCodedMatmul::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents, const std::vector<int>& argnums) {
  check_only_x("entropy_coded_matmul", argnums);
  return {
      entropy_coded_matmul(tangents[0], primals[1], output_dims_, stream())};
}

std::vector<mx::array> EntropyCodedMatmul::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  check_only_x("entropy_coded_matmul", argnums);
  const mx::array& x = primals[0];
  const mx::array weights = entropy_dequantize(
      primals[1], output_dims_, x.shape(-1), mx::float32, stream());
  const mx::array gradient = mx::matmul(
      mx::astype(cotangents[0], mx::float32, stream()), weights, stream());
  return {mx::astype(gradient, x.dtype(), stream())};
}

std::pair<std::vector<mx::array>, std::vector<int>> EntropyCodedMatmul::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  if (axes[1] >= 0) {
    fail("entropy_coded_matmul", "cannot vmap over the coded weights");
  }
  // The last axis is the one that is multiplied, so the mapped one goes first.
  const mx::array x = mx::moveaxis(inputs[0], axes[0], 0, stream());
  return {{entropy_coded_matmul(x, inputs[1], output_dims_, stream())}, {0}};
}

bool EntropyCodedMatmul::is_equivalent(const Primitive& other) const {
  const auto& matmul = static_cast<const EntropyCodedMatmul&>(other);
  return matmul.output_dims_ == output_dims_;
}

std::vector<mx::Shape> EntropyCodedMatmul::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[0].shape();
  shape.back() = output_dims_;
  return {shape};
}

void EntropyCodedGatherMatmul::eval_cpu(const std::vector<mx::array>& inputs,
                                        std::vector<mx::array>& outputs) {
  dispatch(stream(), inputs, outputs[0],
           [x = mx::array::unsafe_weak_copy(inputs[0]),
            coded = CodedBytes(inputs[1]),
            indices = mx::array::unsafe_weak_copy(inputs[2]),
            transposed = transposed_](mx::array& y) {
             const int dims = (transposed ? x : y).shape(-1);
             const int cols = (transposed ? y : x).shape(-1);
             const auto matrix = open(kGatherMatmul, coded, -1, cols);
             const auto block_rows = static_cast<uint32_t>(dims);
             if (!rows_start_tiles(matrix->header(), block_rows)) {
               fail(kGatherMatmul, "the matrix is not coded in blocks of " +
                                       std::to_string(dims) + " rows");
             }
             // An index names the block of all m rows of its slice.
             const std::vector<uint32_t> blocks =
                 blocks_to_multiply(indices, matrix->header().rows / block_rows,
                                    static_cast<size_t>(x.shape(-2)));
             std::vector<uint8_t> storage;
             const void* const data = dense_data(x, &storage);
             const FloatType type = float_type(x.dtype());
             const auto multiply =
                 transposed ? multiply_blocks_transposed : multiply_blocks;
             multiply(*matrix, block_rows, blocks, {type, data},
                      {type, y.data<void>()});
           });
}

void EntropyCodedGatherMatmul::eval_gpu(const std::vector<mx::array>&,
                                        std::vector<mx::array>&) {
  no_gpu("entropy_coded_gather_matmul");
}

mx::array EntropyCodedGatherMatmul::product(const mx::array& x,
                                            const mx::array& coded,
                                            const mx::array& indices,
                                            int output_dims, bool transposed) {
  const auto op = transposed ? entropy_coded_gather_transposed
                             : entropy_coded_gather_matmul;
  return op(x, coded, indices, output_dims, stream());
}

std::vector<mx::array> EntropyCodedGatherMatmul::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents, const std::vector<int>& argnums) {
  check_only_x(kGatherMatmul, argnums);
  return {
      product(tangents[0], primals[1], primals[2], output_dims_, transposed_)};
}

std::vector<mx::array> EntropyCodedGatherMatmul::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  check_only_x(kGatherMatmul, argnums);
  return {product(cotangents[0], primals[1], primals[2], primals[0].shape(-1),
                  !transposed_)};
}

std::pair<std::vector<mx::array>, std::vector<int>>
EntropyCodedGatherMatmul::vmap(const std::vector<mx::array>& inputs,
                               const std::vector<int>& axes) {
  if (axes[1] >= 0) fail(kGatherMatmul, "cannot vmap over the coded weights");
  // In front, where it is one more leading axis; whichever of x and indices
  // lacks it is broadcast.
  const auto in_front = [&](size_t input) {
    return axes[input] < 0
               ? inputs[input]
               : mx::moveaxis(inputs[input], axes[input], 0, stream());
  };
  return {
      {product(in_front(0), inputs[1], in_front(2), output_dims_, transposed_)},
      {0}};
}

bool EntropyCodedGatherMatmul::is_equivalent(const Primitive& other) const {
  const auto& matmul = static_cast<const EntropyCodedGatherMatmul&>(other);
  return matmul.output_dims_ == output_dims_ &&
         matmul.transposed_ == transposed_;
}

std::vector<mx::Shape> EntropyCodedGatherMatmul::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[0].shape();
  shape.back() = output_dims_;
  return {shape};
}

void EntropyCodedEmbedding::eval_cpu(const std::vector<mx::array>& inputs,
                                     std::vector<mx::array>& outputs) {
  dispatch(stream(), inputs, outputs[0],
           [indices = mx::array::unsafe_weak_copy(inputs[0]),
            coded = CodedBytes(inputs[1]), dims = dims_](mx::array& out) {
             const auto matrix =
                 open("entropy_coded_embedding", coded, -1, dims);
             const std::vector<uint32_t> wanted =
                 rows_to_take(indices, matrix->header().rows);
             gather_rows(*matrix, wanted,
                         {float_type(out.dtype()), out.data<void>()});
           });
}

void EntropyCodedEmbedding::eval_gpu(const std::vector<mx::array>&,
                                     std::vector<mx::array>&) {
  no_gpu("entropy_coded_embedding");
}

std::pair<std::vector<mx::array>, std::vector<int>> EntropyCodedEmbedding::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  if (axes[1] >= 0) {
    fail("entropy_coded_embedding", "cannot vmap over the coded weights");
  }
  // Rows are independent, so the mapped axis stays where it is.
  return {
      {entropy_coded_embedding(inputs[0], inputs[1], dims_, dtype_, stream())},
      {axes[0]}};
}

bool EntropyCodedEmbedding::is_equivalent(const Primitive& other) const {
  const auto& embedding = static_cast<const EntropyCodedEmbedding&>(other);
  return embedding.dims_ == dims_ && embedding.dtype_ == dtype_;
}

std::vector<mx::Shape> EntropyCodedEmbedding::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[0].shape();
  shape.push_back(dims_);
  return {shape};
}

void EntropyDequantize::eval_cpu(const std::vector<mx::array>& inputs,
                                 std::vector<mx::array>& outputs) {
  dispatch(stream(), inputs, outputs[0],
           [coded = CodedBytes(inputs[0]), rows = rows_,
            cols = cols_](mx::array& out) {
             const auto matrix = open("entropy_dequantize", coded, rows, cols);
             dequantize(*matrix, {float_type(out.dtype()), out.data<void>()});
           });
}

void EntropyDequantize::eval_gpu(const std::vector<mx::array>&,
                                 std::vector<mx::array>&) {
  no_gpu("entropy_dequantize");
}

bool EntropyDequantize::is_equivalent(const Primitive& other) const {
  const auto& dequantize = static_cast<const EntropyDequantize&>(other);
  return dequantize.rows_ == rows_ && dequantize.cols_ == cols_;
}

std::vector<mx::Shape> EntropyDequantize::output_shapes(
    const std::vector<mx::array>&) {
  return {{rows_, cols_}};
}

}  // namespace mlx_entropy
