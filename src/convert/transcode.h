// The same matrix in another codec.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/status.h"
#include "convert/decoded_planes.h"
#include "convert/encode_matrix.h"
#include "kernels/prepared_matrix.h"

namespace mlx_entropy {

// A matrix whose streams have been validated, on its way to another codec. It
// is decoded and counted once, when that is first asked for: a byte for each
// code, or 4 for each float, of temporary memory. Not for several threads.
class Transcoder {
 public:
  // `matrix` must outlive it.
  explicit Transcoder(const PreparedMatrix& matrix) : matrix_(matrix) {}

  const PreparedMatrix& matrix() const { return matrix_; }
  const std::vector<PlaneHistogram>& histograms() const;

  // The bytes in another codec. Tiles keep their rows unless `options` has
  // others, so that experts still start tiles.
  Result<std::vector<uint8_t>> encode(const EncodeOptions& options) const;

 private:
  const DecodedPlanes& planes() const;

  const PreparedMatrix& matrix_;
  mutable std::optional<DecodedPlanes> planes_;
  mutable std::vector<PlaneHistogram> histograms_;
};

}  // namespace mlx_entropy
