#pragma once

#include <cstddef>
#include <vector>

namespace mlx_entropy {

// Reads `bytes` of memory (rounded down to whole megabytes, one at least)
// `passes` times with the threads of the pool; returns the bytes a second of
// each pass. What kernels that read weights once are compared with, so `bytes`
// has to be several times the size of the last cache.
std::vector<double> read_bandwidth(size_t bytes, size_t passes);

}  // namespace mlx_entropy
