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

  // Writes the matrix in another codec to `memory`. Tiles keep their rows
  // unless `options` has others, so that experts still start tiles. What was
  // decoded is let go before the memory is asked for.
  Status encode(const EncodeOptions& options, const Memory& memory) const;

 private:
  const DecodedPlanes& planes() const;

  const PreparedMatrix& matrix_;
  mutable std::optional<DecodedPlanes> planes_;
  mutable std::vector<PlaneHistogram> histograms_;
};

}  // namespace mlx_entropy
