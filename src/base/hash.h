#pragma once

#include <cstddef>
#include <cstdint>

namespace mlx_entropy {

// XXH64 (Yann Collet, xxHash specification 0.1.1) with seed 0.
uint64_t xxh64(const uint8_t* data, size_t size);

}  // namespace mlx_entropy
