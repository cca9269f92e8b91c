#pragma once

#include <cstddef>
#include <vector>

namespace mlx_entropy {

// Reads `bytes` of memory (rounded down to whole megabytes, one at least)
// `passes` times with the threads of the pool; returns the bytes a second of
// each pass. What kernels that read weights once are compared with, so `bytes`
// has to be several times the size of the last cache.
std::vector<double> read_bandwidth(size_t bytes, size_t passes);

// What all threads read together, from how long each megabyte took the thread
// that read it: the median, times the threads. Time in which another process
// had the core does not count, unlike in read_bandwidth.
double burst_bandwidth(size_t bytes, size_t passes);

// Bytes of the largest cache of a CPU; a guess where the system does not say.
size_t last_cache_bytes();

}  // namespace mlx_entropy
