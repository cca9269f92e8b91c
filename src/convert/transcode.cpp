#include "convert/transcode.h"

#include "convert/histograms.h"

namespace mlx_entropy {

const DecodedPlanes& Transcoder::planes() const {
  if (!planes_) planes_.emplace(matrix_);
  return *planes_;
}

const std::vector<PlaneHistogram>& Transcoder::histograms() const {
  if (histograms_.empty()) {
    histograms_ = count_values(planes(), planes().describe());
  }
  return histograms_;
}

Status Transcoder::encode(const EncodeOptions& options,
                          const Memory& memory) const {
  EncodeOptions with_tiles = options;
  if (with_tiles.tile_rows == 0) {
    with_tiles.tile_rows = matrix_.header().tile_rows;
  }
  histograms();
  const auto without_planes = [&](size_t size) {
    planes_.reset();
    return memory(size);
  };
  return encode_matrix(planes(), with_tiles, without_planes, &histograms_);
}

}  // namespace mlx_entropy
