#include "kernels/decoded_tile.h"

#include "base/bits.h"
#include "kernels/kernels.h"

namespace mlx_entropy {

DecodedTile::DecodedTile(const PreparedMatrix& matrix, uint32_t index,
                         uint32_t rows) {
  const MatrixHeader& header = matrix.header();
  const Tile tile = matrix.container().tile(index);
  TileValues values;
  for (size_t p = 0; p < matrix.weights_plane(); ++p) {
    side[p].resize(tile.planes[p].steps() * kLanes);
    values.side[p] = side[p].data();
  }
  values.rows = rows;
  const size_t room = ceil_div(uint64_t{rows} * header.cols, kLanes) * kLanes;
  if (header.scheme == Scheme::kFloat) {
    words.resize(room);
    values.words = words.data();
  } else {
    codes.resize(room);
    values.codes = codes.data();
  }
  active_target().decode_tile(matrix, index, values, Scratch::local());
}

}  // namespace mlx_entropy
