#include "kernels/prepared_matrix.h"

#include <algorithm>

namespace mlx_entropy {

PreparedMatrix::PreparedMatrix(Container container)
    : container_(std::move(container)) {
  for (const Plane& plane : header().planes) {
    PlaneTables& tables = tables_.emplace_back();
    std::copy(plane.palette.begin(), plane.palette.end(),
              tables.palette.begin());
    if (!plane.coded()) continue;
    if (header().state_bits == 16) {
      tables.alias = AliasTable::build(plane.frequencies);
    } else {
      tables.slots = build_slot_table(plane.frequencies);
    }
  }
}

Result<std::shared_ptr<const PreparedMatrix>> PreparedMatrix::make(
    const uint8_t* data, size_t size) {
  Result<Container> container = Container::parse(data, size);
  if (!container.ok()) return container.status();
  return std::shared_ptr<const PreparedMatrix>(
      new PreparedMatrix(std::move(container.value())));
}

}  // namespace mlx_entropy
