// The same matrix in another codec.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "convert/encode_matrix.h"
#include "kernels/prepared_matrix.h"

namespace mlx_entropy {

// Decodes `matrix`, whose streams must have been validated, and codes it
// again. Takes a byte for each code, or 4 for each float, of temporary memory.
// Tiles keep their rows, so that experts still start tiles.
Result<std::vector<uint8_t>> transcode(const PreparedMatrix& matrix,
                                       const EncodeOptions& options);

}  // namespace mlx_entropy
