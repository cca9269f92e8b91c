// Between mlx arrays and the core's views of memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/float_bits.h"
#include "base/status.h"
#include "mlx/array.h"

namespace mlx_entropy {

namespace mx = mlx::core;

// FloatType::kNone when the core does not handle the type.
FloatType float_type(mx::Dtype dtype);
mx::Dtype dtype(FloatType type);

// "[op] what" as std::invalid_argument, the way MLX reports bad arguments.
[[noreturn]] void fail(const char* op, const std::string& what);

// Memory for an output, or std::bad_alloc: MLX does not look at what its
// allocator returns.
void allocate(mx::array& out);

// The elements of an evaluated array in row-major order: the array's own
// memory when it is contiguous, else a copy in `storage`.
const void* dense_data(const mx::array& array, std::vector<uint8_t>* storage);

// "(2, 3)" for messages.
std::string to_string(const mx::Shape& shape);

}  // namespace mlx_entropy
