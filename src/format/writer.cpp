#include "format/writer.h"

#include <algorithm>

#include "base/hash.h"

namespace mlx_entropy {
namespace {

class Cursor {
 public:
  explicit Cursor(uint8_t* p) : p_(p) {}

  template <class T>
  void put(T value) {
    store(p_, value);
    p_ += sizeof value;
  }
  void put(const std::vector<uint8_t>& bytes) {
    p_ = std::copy(bytes.begin(), bytes.end(), p_);
  }

 private:
  uint8_t* p_;
};

size_t table_bytes(const MatrixHeader& header) {
  size_t bytes = header::kSize + 8 * (size_t{header.tiles} + 1);
  for (const Plane& plane : header.planes) {
    bytes +=
        plane::kSize + plane.palette.size() +
        (plane.tree.empty() ? 2 * plane.classes() : plane.tree.stored_bytes());
  }
  return bytes;
}

void put_header(Cursor* out, const MatrixHeader& header, uint64_t total) {
  out->put(kMagic);
  out->put(kVersion);
  out->put(static_cast<uint8_t>(header.scheme));
  out->put(static_cast<uint8_t>(header.coder));
  out->put(total);
  out->put(uint64_t{0});  // the checksum, once everything else is there
  out->put(header.rows);
  out->put(header.cols);
  out->put(header.tile_rows);
  out->put(header.tiles);
  out->put(static_cast<uint8_t>(header.bits));
  out->put(static_cast<uint8_t>(header.float_type));
  out->put(static_cast<uint16_t>(header.group_size));
  out->put(static_cast<uint8_t>(header.planes.size()));
  out->put(std::vector<uint8_t>(header::kSize - header::kReservedAt, 0));
  for (const Plane& plane : header.planes) {
    out->put(static_cast<uint8_t>(plane.kind));
    out->put(static_cast<uint8_t>(plane.raw_bits));
    out->put(static_cast<uint8_t>(plane.shift));
    out->put(static_cast<uint8_t>(plane.palette.empty() ? 0 : 1));
    out->put(static_cast<uint32_t>(plane.classes()));
    out->put(plane.base);
    if (plane.tree.empty()) {
      for (uint16_t frequency : plane.frequencies) out->put(frequency);
    } else {
      out->put(static_cast<uint16_t>(plane.tree.nodes.size()));
      for (const TreeNode& node : plane.tree.nodes) out->put(node.depth);
      out->put(plane.tree.symbols);
    }
    out->put(plane.palette);
  }
}

void put_tile(Cursor* out, const TilePayload& tile) {
  for (uint32_t count : tile.exception_counts) out->put(count);
  out->put(tile.states);
  out->put(tile.raw);
  for (const Exception& exception : tile.exceptions) {
    out->put(exception.index);
    out->put(exception.value);
  }
  out->put(tile.stream);
}

}  // namespace

void write_container(const MatrixHeader& header, std::vector<TilePayload> tiles,
                     const Memory& memory) {
  const size_t first_tile = table_bytes(header);
  size_t used = first_tile;
  for (const TilePayload& tile : tiles) used += tile.bytes();
  const size_t total =
      ceil_div(used + kTailPadding, kSizeMultiple) * kSizeMultiple;
  uint8_t* const bytes = memory(total);
  Cursor out(bytes);
  put_header(&out, header, total);
  uint64_t offset = first_tile;
  for (const TilePayload& tile : tiles) {
    out.put(offset);
    offset += tile.bytes();
  }
  out.put(offset);
  for (TilePayload& tile : tiles) {
    put_tile(&out, tile);
    tile = TilePayload();
  }
  std::fill(bytes + used, bytes + total, uint8_t{0});
  store(bytes + header::kChecksumAt,
        xxh64(bytes + header::kRowsAt, total - header::kRowsAt));
}

std::vector<uint8_t> write_container(const MatrixHeader& header,
                                     std::vector<TilePayload> tiles) {
  std::vector<uint8_t> bytes;
  write_container(header, std::move(tiles), memory_of(&bytes));
  return bytes;
}

}  // namespace mlx_entropy
