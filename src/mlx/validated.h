// Coded arrays that have passed validate(), so that each is checked once.
#pragma once

#include <memory>

#include "base/status.h"
#include "kernels/prepared_matrix.h"
#include "mlx/array.h"

namespace mlx_entropy {

// What a task needs of a coded array. Made when the task is scheduled, when
// the array's memory exists but its bytes may not have been written yet.
struct CodedBytes {
  explicit CodedBytes(const mlx::core::array& coded);

  // Identifies the memory: the address may be reused once it is freed, and
  // then this has expired.
  std::weak_ptr<mlx::core::array::Data> owner;
  mlx::core::array array;
};

// The prepared form of evaluated bytes; validates those seen for the first
// time. Thread-safe.
Result<std::shared_ptr<const PreparedMatrix>> validated(
    const CodedBytes& coded);

// Takes bytes that our own encoder has just written for validated: their
// streams are not decoded.
void trust(const CodedBytes& coded);

}  // namespace mlx_entropy
