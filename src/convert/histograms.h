// What the values of a matrix's planes are, counted on all threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "convert/plane_plan.h"
#include "quant/plane_source.h"

namespace mlx_entropy {

// An empty histogram for each plane of `header`.
std::vector<PlaneHistogram> make_histograms(const MatrixHeader& header);

// Histograms of all planes of a source with this header.
std::vector<PlaneHistogram> count_values(const PlaneSource& source,
                                         const MatrixHeader& header);

// Adds values [first, first + count) of a plane.
void count_range(const PlaneSource& source, size_t plane, uint64_t first,
                 uint64_t count, PlaneHistogram* histogram);

}  // namespace mlx_entropy
