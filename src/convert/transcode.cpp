#include "convert/transcode.h"

#include "convert/decoded_planes.h"

namespace mlx_entropy {

Result<std::vector<uint8_t>> transcode(const PreparedMatrix& matrix,
                                       const EncodeOptions& options) {
  EncodeOptions with_tiles = options;
  if (with_tiles.tile_rows == 0) {
    with_tiles.tile_rows = matrix.header().tile_rows;
  }
  return encode_matrix(DecodedPlanes(matrix), with_tiles);
}

}  // namespace mlx_entropy
