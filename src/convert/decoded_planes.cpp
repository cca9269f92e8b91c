#include "convert/decoded_planes.h"

#include <algorithm>

#include "base/thread_pool.h"
#include "kernels/decoded_tile.h"

namespace mlx_entropy {
namespace {

template <class T>
void copy_to(const std::vector<T>& from, uint64_t count, uint64_t first,
             std::vector<T>* to) {
  std::copy_n(from.begin(), count, to->begin() + static_cast<ptrdiff_t>(first));
}

}  // namespace

DecodedPlanes::DecodedPlanes(const PreparedMatrix& matrix)
    : header_(matrix.header()) {
  const size_t count = uint64_t{header_.rows} * header_.cols;
  if (header_.scheme == Scheme::kFloat) {
    words_.resize(count);
  } else {
    codes_.resize(count);
  }
  for (size_t p = 0; p < matrix.weights_plane(); ++p) {
    side_[p].resize(header_.values(header_.planes[p], header_.rows));
  }
  ThreadPool::instance().run(header_.tiles, [&](size_t task) {
    decode(matrix, static_cast<uint32_t>(task));
  });
}

void DecodedPlanes::decode(const PreparedMatrix& matrix, uint32_t index) {
  const uint32_t rows = header_.rows_in_tile(index);
  const DecodedTile tile(matrix, index, rows);
  const uint64_t row = uint64_t{index} * header_.tile_rows;
  const auto first = [&](size_t p) {
    return header_.values(header_.planes[p], row);
  };
  const auto count = [&](size_t p) {
    return header_.values(header_.planes[p], rows);
  };
  const size_t weights = matrix.weights_plane();
  for (size_t p = 0; p < weights; ++p) {
    copy_to(tile.side[p], count(p), first(p), &side_[p]);
  }
  if (words_.empty()) {
    copy_to(tile.codes, count(weights), first(weights), &codes_);
  } else {
    copy_to(tile.words, count(weights), first(weights), &words_);
  }
}

MatrixHeader DecodedPlanes::describe() const {
  MatrixHeader header = header_;
  for (Plane& plane : header.planes) {
    const PlaneKind kind = plane.kind;
    plane = Plane();
    plane.kind = kind;
  }
  return header;
}

void DecodedPlanes::read(size_t plane, uint64_t first, size_t count,
                         uint32_t* out) const {
  const auto at = static_cast<ptrdiff_t>(first);
  if (plane + 1 < header_.planes.size()) {
    std::copy_n(side_[plane].begin() + at, count, out);
  } else if (!words_.empty()) {
    std::copy_n(words_.begin() + at, count, out);
  } else {
    std::copy_n(codes_.begin() + at, count, out);
  }
}

const uint8_t* DecodedPlanes::bytes(size_t plane) const {
  const bool is_codes = plane + 1 == header_.planes.size() && words_.empty();
  return is_codes ? codes_.data() : nullptr;
}

}  // namespace mlx_entropy
