#include "convert/decoded_planes.h"

#include <algorithm>
#include <mutex>

#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace mlx_entropy {
namespace {

// One tile's planes, in whole steps.
struct DecodedTile {
  DecodedTile(const PreparedMatrix& matrix, uint32_t index) {
    const Tile tile = matrix.container().tile(index);
    const size_t weights = matrix.weights_plane();
    TileValues values;
    for (size_t p = 0; p < weights; ++p) {
      side[p].resize(tile.planes[p].steps() * kLanes);
      values.side[p] = side[p].data();
    }
    values.rows = tile.rows;
    const size_t room = tile.planes[weights].steps() * kLanes + kLanes;
    if (matrix.header().scheme == Scheme::kFloat) {
      words.resize(room);
      values.words = words.data();
    } else {
      codes.resize(room);
      values.codes = codes.data();
    }
    active_target().decode_tile(matrix, index, values, Scratch::local());
    for (size_t p = 0; p < weights; ++p) side[p].resize(tile.planes[p].values);
    if (!words.empty()) words.resize(tile.planes[weights].values);
    if (!codes.empty()) codes.resize(tile.planes[weights].values);
  }

  std::vector<uint32_t> side[kMaxPlanes - 1];
  std::vector<uint8_t> codes;
  std::vector<uint32_t> words;
};

template <class T>
void copy_to(const std::vector<T>& from, uint64_t first, std::vector<T>* to) {
  std::copy(from.begin(), from.end(),
            to->begin() + static_cast<ptrdiff_t>(first));
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
  const DecodedTile tile(matrix, index);
  const uint64_t row = uint64_t{index} * header_.tile_rows;
  for (size_t p = 0; p < matrix.weights_plane(); ++p) {
    copy_to(tile.side[p], header_.values(header_.planes[p], row), &side_[p]);
  }
  copy_to(tile.codes, tile.codes.empty() ? 0 : row * header_.cols, &codes_);
  copy_to(tile.words, tile.words.empty() ? 0 : row * header_.cols, &words_);
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

std::vector<PlaneHistogram> decoded_histograms(const PreparedMatrix& matrix) {
  const MatrixHeader& header = matrix.header();
  std::vector<PlaneHistogram> total;
  for (const Plane& plane : header.planes) {
    total.emplace_back(plane.kind, header.value_bits(plane));
  }
  std::mutex mutex;
  ThreadPool::instance().run(header.tiles, [&](size_t task) {
    const DecodedTile tile(matrix, static_cast<uint32_t>(task));
    std::vector<PlaneHistogram> mine;
    for (size_t p = 0; p < header.planes.size(); ++p) {
      const Plane& plane = header.planes[p];
      PlaneHistogram& own =
          mine.emplace_back(plane.kind, header.value_bits(plane));
      if (p < matrix.weights_plane()) {
        own.add(tile.side[p].data(), tile.side[p].size());
      } else if (!tile.words.empty()) {
        own.add(tile.words.data(), tile.words.size());
      } else {
        const std::vector<uint32_t> wide(tile.codes.begin(), tile.codes.end());
        own.add(wide.data(), wide.size());
      }
    }
    std::lock_guard lock(mutex);
    for (size_t p = 0; p < total.size(); ++p) total[p].merge(mine[p]);
  });
  return total;
}

}  // namespace mlx_entropy
