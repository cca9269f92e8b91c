#include "convert/transcode.h"

#include <algorithm>

#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace mlx_entropy {
namespace {

// All planes of a coded matrix, decoded.
class DecodedPlanes : public PlaneSource {
 public:
  explicit DecodedPlanes(const PreparedMatrix& matrix)
      : header_(matrix.header()) {
    const size_t weights = matrix.weights_plane();
    const bool bytes = header_.scheme != Scheme::kFloat;
    const size_t room = uint64_t{header_.rows} * header_.cols + kLanes;
    (bytes ? codes_.resize(room) : words_.resize(room));
    for (size_t p = 0; p < weights; ++p) {
      side_[p].resize(header_.values(header_.planes[p], header_.rows));
    }
    ThreadPool::instance().run(header_.tiles, [&](size_t task) {
      decode(matrix, static_cast<uint32_t>(task));
    });
  }

  MatrixHeader describe() const override {
    MatrixHeader header = header_;
    for (Plane& plane : header.planes) {
      const PlaneKind kind = plane.kind;
      plane = Plane();
      plane.kind = kind;
    }
    return header;
  }

  void read(size_t plane, uint64_t first, size_t count,
            uint32_t* out) const override {
    if (plane + 1 < header_.planes.size()) {
      std::copy_n(side_[plane].begin() + static_cast<ptrdiff_t>(first), count,
                  out);
    } else if (!words_.empty()) {
      std::copy_n(words_.begin() + static_cast<ptrdiff_t>(first), count, out);
    } else {
      std::copy_n(codes_.begin() + static_cast<ptrdiff_t>(first), count, out);
    }
  }

 private:
  void decode(const PreparedMatrix& matrix, uint32_t index) {
    const Tile tile = matrix.container().tile(index);
    const uint64_t row = uint64_t{index} * header_.tile_rows;
    const size_t weights = matrix.weights_plane();
    TileValues values;
    // Whole steps: a tile's last one would run into the next tile's values.
    std::vector<uint32_t> side[kMaxPlanes - 1];
    for (size_t p = 0; p < weights; ++p) {
      side[p].resize(tile.planes[p].steps() * kLanes);
      values.side[p] = side[p].data();
    }
    values.rows = tile.rows;
    std::vector<uint8_t> codes;
    std::vector<uint32_t> words;
    const size_t room = tile.planes[weights].steps() * kLanes + kLanes;
    if (words_.empty()) {
      codes.resize(room);
      values.codes = codes.data();
    } else {
      words.resize(room);
      values.words = words.data();
    }
    active_target().decode_tile(matrix, index, values, Scratch::local());
    for (size_t p = 0; p < weights; ++p) {
      std::copy_n(side[p].begin(), tile.planes[p].values,
                  side_[p].begin() + static_cast<ptrdiff_t>(header_.values(
                                         header_.planes[p], row)));
    }
    const auto to = static_cast<ptrdiff_t>(row * header_.cols);
    const size_t count = tile.planes[weights].values;
    if (words_.empty()) {
      std::copy_n(codes.begin(), count, codes_.begin() + to);
    } else {
      std::copy_n(words.begin(), count, words_.begin() + to);
    }
  }

  const MatrixHeader& header_;
  std::vector<uint32_t> side_[kMaxPlanes - 1];
  std::vector<uint8_t> codes_;
  std::vector<uint32_t> words_;
};

}  // namespace

Result<std::vector<uint8_t>> transcode(const PreparedMatrix& matrix,
                                       const EncodeOptions& options) {
  EncodeOptions with_tiles = options;
  if (with_tiles.tile_rows == 0) {
    with_tiles.tile_rows = matrix.header().tile_rows;
  }
  return encode_matrix(DecodedPlanes(matrix), with_tiles);
}

}  // namespace mlx_entropy
