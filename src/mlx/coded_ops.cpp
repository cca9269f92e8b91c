#include "mlx/coded_ops.h"

#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "mlx/arrays.h"
#include "mlx/coded_primitives.h"
#include "mlx/ops.h"

namespace mlx_entropy {
namespace {

std::string name(mx::Dtype dtype) {
  std::ostringstream text;
  text << dtype;
  return text.str();
}

void check_coded(const char* op, const mx::array& coded) {
  if (coded.dtype() != mx::uint8 || coded.ndim() != 1) {
    fail(op, "coded weights must be a uint8 vector, got " +
                 name(coded.dtype()) + " of shape " + to_string(coded.shape()));
  }
}

void check_float(const char* op, const char* what, mx::Dtype dtype) {
  if (float_type(dtype) == FloatType::kNone) {
    fail(op, std::string(what) + " must be float32, float16 or bfloat16, got " +
                 name(dtype));
  }
}

void check_indices(const char* op, const mx::array& indices) {
  if (!mx::issubdtype(indices.dtype(), mx::integer)) {
    fail(op, "indices must be integers, got " + name(indices.dtype()));
  }
}

// As int64, which unsigned indices of 64 bits must not turn negative in.
mx::array wide(const mx::array& indices, mx::Stream stream) {
  if (indices.dtype() != mx::uint64) {
    return mx::astype(indices, mx::int64, stream);
  }
  const mx::array largest(INT64_MAX, mx::uint64);
  return mx::astype(mx::minimum(indices, largest, stream), mx::int64, stream);
}

void check_positive(const char* op, const char* what, int value) {
  if (value <= 0) {
    fail(op,
         std::string(what) + " must be positive, got " + std::to_string(value));
  }
}

// The kernels run on the CPU, whatever the default device is.
mx::Stream cpu_stream(mx::StreamOrDevice s) {
  return mx::to_stream(s, mx::Device::cpu);
}

mx::array gather_matmul(const char* op, const mx::array& x,
                        const mx::array& coded, const mx::array& indices,
                        int output_dims, bool transposed,
                        mx::StreamOrDevice s) {
  check_coded(op, coded);
  check_float(op, "x", x.dtype());
  check_positive(op, "output_dims", output_dims);
  check_indices(op, indices);
  if (x.ndim() < 2 || x.shape(-1) == 0) {
    fail(op,
         "x must have two axes to multiply, got shape " + to_string(x.shape()));
  }
  const mx::Stream stream = cpu_stream(s);
  mx::Shape batch(x.shape().begin(), x.shape().end() - 2);
  batch = mx::broadcast_shapes(batch, indices.shape());
  mx::Shape x_shape = batch;
  x_shape.insert(x_shape.end(), {x.shape(-2), x.shape(-1)});
  mx::Shape out_shape = batch;
  out_shape.insert(out_shape.end(), {x.shape(-2), output_dims});
  return mx::array(std::move(out_shape), x.dtype(),
                   std::make_shared<EntropyCodedGatherMatmul>(
                       stream, output_dims, transposed),
                   {mx::broadcast_to(x, x_shape, stream), coded,
                    mx::broadcast_to(wide(indices, stream), batch, stream)});
}

}  // namespace

mx::array entropy_coded_matmul(const mx::array& x, const mx::array& coded,
                               int output_dims, mx::StreamOrDevice s) {
  constexpr const char* kOp = "entropy_coded_matmul";
  check_coded(kOp, coded);
  check_float(kOp, "x", x.dtype());
  check_positive(kOp, "output_dims", output_dims);
  if (x.ndim() == 0 || x.shape(-1) == 0) {
    fail(kOp, "x must have a last axis to multiply, got shape " +
                  to_string(x.shape()));
  }
  mx::Shape shape = x.shape();
  shape.back() = output_dims;
  return mx::array(
      std::move(shape), x.dtype(),
      std::make_shared<EntropyCodedMatmul>(cpu_stream(s), output_dims),
      {x, coded});
}

mx::array entropy_coded_gather_matmul(const mx::array& x,
                                      const mx::array& coded,
                                      const mx::array& indices, int output_dims,
                                      mx::StreamOrDevice s) {
  return gather_matmul("entropy_coded_gather_matmul", x, coded, indices,
                       output_dims, false, s);
}

mx::array entropy_coded_gather_transposed(const mx::array& x,
                                          const mx::array& coded,
                                          const mx::array& indices,
                                          int output_dims,
                                          mx::StreamOrDevice s) {
  return gather_matmul("entropy_coded_gather_matmul", x, coded, indices,
                       output_dims, true, s);
}

mx::array entropy_coded_embedding(const mx::array& indices,
                                  const mx::array& coded, int dims,
                                  mx::Dtype dtype, mx::StreamOrDevice s) {
  constexpr const char* kOp = "entropy_coded_embedding";
  check_coded(kOp, coded);
  check_float(kOp, "dtype", dtype);
  check_positive(kOp, "dims", dims);
  check_indices(kOp, indices);
  const mx::Stream stream = cpu_stream(s);
  mx::Shape shape = indices.shape();
  shape.push_back(dims);
  return mx::array(std::move(shape), dtype,
                   std::make_shared<EntropyCodedEmbedding>(stream, dims, dtype),
                   {wide(indices, stream), coded});
}

mx::array entropy_dequantize(const mx::array& coded, int rows, int cols,
                             mx::Dtype dtype, mx::StreamOrDevice s) {
  constexpr const char* kOp = "entropy_dequantize";
  check_coded(kOp, coded);
  check_float(kOp, "dtype", dtype);
  check_positive(kOp, "rows", rows);
  check_positive(kOp, "cols", cols);
  return mx::array(
      {rows, cols}, dtype,
      std::make_shared<EntropyDequantize>(cpu_stream(s), rows, cols), {coded});
}

}  // namespace mlx_entropy
