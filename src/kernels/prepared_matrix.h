// A parsed matrix with the decode tables of its planes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "codec/rans/model.h"
#include "format/container.h"

namespace mlx_entropy {

struct PlaneTables {
  AliasTable alias{};           // rans16
  std::vector<uint32_t> slots;  // rans32
  alignas(64) std::array<uint8_t, 256> palette{};
};

class PreparedMatrix {
 public:
  // Structure only; see validate() for the streams. The bytes must outlive
  // the result.
  static Result<std::shared_ptr<const PreparedMatrix>> make(const uint8_t* data,
                                                            size_t size);

  const Container& container() const { return container_; }
  const MatrixHeader& header() const { return container_.header(); }
  const PlaneTables& tables(size_t plane) const { return tables_[plane]; }
  // The plane with one value for each weight: always the last.
  size_t weights_plane() const { return header().planes.size() - 1; }

 private:
  explicit PreparedMatrix(Container container);

  Container container_;
  std::vector<PlaneTables> tables_;
};

}  // namespace mlx_entropy
