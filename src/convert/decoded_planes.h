// A coded matrix as a source of planes.
#pragma once

#include <vector>

#include "kernels/prepared_matrix.h"
#include "quant/plane_source.h"

namespace mlx_entropy {

// All planes, decoded: a byte for each code or 4 for each float. The matrix
// must have been validated.
class DecodedPlanes : public PlaneSource {
 public:
  explicit DecodedPlanes(const PreparedMatrix& matrix);

  MatrixHeader describe() const override;
  void read(size_t plane, uint64_t first, size_t count,
            uint32_t* out) const override;
  const uint8_t* bytes(size_t plane) const override;

 private:
  void decode(const PreparedMatrix& matrix, uint32_t index);

  const MatrixHeader& header_;
  std::vector<uint32_t> side_[kMaxPlanes - 1];
  std::vector<uint8_t> codes_;
  std::vector<uint32_t> words_;
};

}  // namespace mlx_entropy
