// Replaces operator new by one that counts what it is asked for.
#pragma once

#include <atomic>
#include <cstddef>

namespace mlx_entropy::testing {

extern std::atomic<size_t> allocated_bytes;

}  // namespace mlx_entropy::testing
