#include "mlx/arrays.h"

#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "mlx/allocator.h"

namespace mlx_entropy {

FloatType float_type(mx::Dtype dtype) {
  if (dtype == mx::float32) return FloatType::kFloat32;
  if (dtype == mx::float16) return FloatType::kFloat16;
  if (dtype == mx::bfloat16) return FloatType::kBfloat16;
  return FloatType::kNone;
}

mx::Dtype dtype(FloatType type) {
  switch (type) {
    case FloatType::kFloat32:
      return mx::float32;
    case FloatType::kFloat16:
      return mx::float16;
    case FloatType::kBfloat16:
      return mx::bfloat16;
    default:
      return mx::uint8;
  }
}

void fail(const char* op, const std::string& what) {
  throw std::invalid_argument("[" + std::string(op) + "] " + what);
}

void allocate(mx::array& out) {
  mx::allocator::Data data = mx::allocator::malloc(out.nbytes());
  if (data.buffer().ptr() == nullptr && out.nbytes() > 0) {
    throw std::bad_alloc();
  }
  out.set_data(std::move(data));
}

const void* dense_data(const mx::array& array, std::vector<uint8_t>* storage) {
  const auto* const data = array.data<uint8_t>();
  if (array.flags().row_contiguous || array.size() == 0) return data;
  const size_t item = array.itemsize();
  storage->resize(array.nbytes());
  // Rows that are contiguous, as those of a broadcast array, go in one piece.
  const bool whole_rows = array.strides().back() == 1;
  const size_t piece =
      whole_rows ? static_cast<size_t>(array.shape().back()) : 1;
  const size_t outer = array.ndim() - (whole_rows ? 1 : 0);
  std::vector<int64_t> index(outer, 0);
  uint8_t* to = storage->data();
  for (size_t i = 0; i < array.size(); i += piece, to += piece * item) {
    int64_t offset = 0;
    for (size_t axis = 0; axis < outer; ++axis) {
      offset += index[axis] * array.strides()[axis];
    }
    std::memcpy(to, data + offset * static_cast<int64_t>(item), piece * item);
    for (size_t axis = outer; axis-- > 0;) {
      if (++index[axis] < array.shape()[axis]) break;
      index[axis] = 0;
    }
  }
  return storage->data();
}

std::string to_string(const mx::Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + ")";
}

}  // namespace mlx_entropy
