#include "format/container.h"

#include <algorithm>
#include <numeric>

#include "base/hash.h"

namespace mlx_entropy {
namespace {

Status invalid(const std::string& what) {
  return Status::error("invalid coded matrix: " + what);
}

bool one_of(int value, std::initializer_list<int> allowed) {
  return std::find(allowed.begin(), allowed.end(), value) != allowed.end();
}

// The planes of each scheme, in stream order.
bool planes_match(const MatrixHeader& header) {
  using K = PlaneKind;
  std::vector<K> kinds;
  for (const Plane& plane : header.planes) kinds.push_back(plane.kind);
  switch (header.scheme) {
    case Scheme::kSymbols:
      return kinds == std::vector{K::kCodes};
    case Scheme::kFloat:
      return kinds == std::vector{K::kFloats};
    case Scheme::kAffine:
      return kinds == std::vector{K::kScales, K::kOffsets, K::kCorrections,
                                  K::kCodes} ||
             kinds == std::vector{K::kScales, K::kBiases, K::kCodes};
  }
  return false;
}

}  // namespace

const char* plane_name(PlaneKind kind) {
  switch (kind) {
    case PlaneKind::kCodes:
      return "codes";
    case PlaneKind::kScales:
      return "scales";
    case PlaneKind::kOffsets:
      return "offsets";
    case PlaneKind::kCorrections:
      return "corrections";
    case PlaneKind::kBiases:
      return "biases";
    case PlaneKind::kFloats:
      return "floats";
  }
  return "unknown";
}

uint32_t row_unit(uint32_t cols) {
  return static_cast<uint32_t>(kLanes) /
         std::gcd(cols, static_cast<uint32_t>(kLanes));
}

bool MatrixHeader::any_coded() const {
  return std::any_of(planes.begin(), planes.end(),
                     [](const Plane& plane) { return plane.coded(); });
}

int MatrixHeader::value_bits(const Plane& plane) const {
  switch (plane.kind) {
    case PlaneKind::kCodes:
      return bits;
    case PlaneKind::kOffsets:
      return 16;
    case PlaneKind::kCorrections:
      return 32;
    default:
      return bit_width(float_type);
  }
}

Result<Container> Container::parse(const uint8_t* data, size_t size) {
  Container container;
  container.data_ = data;
  container.size_ = size;
  if (Status status = container.parse_header(); !status.ok()) return status;
  size_t at = header::kSize;
  if (Status status = container.parse_planes(&at); !status.ok()) return status;
  if (Status status = container.check_geometry(); !status.ok()) return status;
  container.tile_table_ = at;
  if (Status status = container.check_tiles(); !status.ok()) return status;
  return container;
}

Status Container::parse_header() {
  if (size_ < header::kSize + kTailPadding) {
    return invalid("too short: " + std::to_string(size_) + " bytes");
  }
  if (load<uint32_t>(data_ + header::kMagicAt) != kMagic) {
    return invalid("bad magic");
  }
  const int version = load<uint16_t>(data_ + header::kVersionAt);
  if (version != kVersion) {
    return invalid("format version " + std::to_string(version) +
                   ", this build reads " + std::to_string(kVersion));
  }
  const uint64_t total = load<uint64_t>(data_ + header::kTotalBytesAt);
  if (total != size_) {
    return invalid("header says " + std::to_string(total) + " bytes, got " +
                   std::to_string(size_));
  }
  const int scheme = data_[header::kSchemeAt];
  if (scheme > static_cast<int>(Scheme::kFloat)) return invalid("bad scheme");
  const int float_type = data_[header::kFloatTypeAt];
  if (float_type > static_cast<int>(FloatType::kBfloat16)) {
    return invalid("bad float type");
  }
  header_.scheme = static_cast<Scheme>(scheme);
  header_.float_type = static_cast<FloatType>(float_type);
  header_.coder = static_cast<Coder>(data_[header::kCoderAt]);
  header_.rows = load<uint32_t>(data_ + header::kRowsAt);
  header_.cols = load<uint32_t>(data_ + header::kColsAt);
  header_.tile_rows = load<uint32_t>(data_ + header::kTileRowsAt);
  header_.tiles = load<uint32_t>(data_ + header::kTilesAt);
  header_.bits = data_[header::kBitsAt];
  header_.group_size = load<uint16_t>(data_ + header::kGroupSizeAt);
  if (!one_of(data_[header::kCoderAt], {0, 16, 32}))
    return invalid("bad coder");
  for (size_t i = header::kReservedAt; i < header::kSize; ++i) {
    if (data_[i] != 0) return invalid("reserved bytes are not zero");
  }
  return {};
}

Status Container::parse_planes(size_t* at) {
  const size_t n_planes = data_[header::kPlanesAt];
  if (n_planes == 0 || n_planes > kMaxPlanes) return invalid("plane count");
  const CoderLimits& limits = header_.limits();
  for (size_t i = 0; i < n_planes; ++i) {
    if (size_ - *at < plane::kSize) return invalid("truncated plane table");
    const uint8_t* p = data_ + *at;
    Plane plane;
    if (p[plane::kKindAt] > static_cast<int>(PlaneKind::kFloats)) {
      return invalid("bad plane kind");
    }
    plane.kind = static_cast<PlaneKind>(p[plane::kKindAt]);
    plane.raw_bits = p[plane::kRawBitsAt];
    plane.shift = p[plane::kShiftAt];
    plane.base = load<uint32_t>(p + plane::kBaseAt);
    const int palette = p[plane::kPaletteAt];
    const bool may_have_palette = plane.kind == PlaneKind::kCodes &&
                                  plane.raw_bits <= 8 && plane.base == 0 &&
                                  plane.shift == 0;
    if (palette > 1 || (palette == 1 && !may_have_palette)) {
      return invalid("palette");
    }
    const size_t classes = load<uint32_t>(p + plane::kClassesAt);
    if (classes == 0 || classes > static_cast<size_t>(limits.max_classes)) {
      return invalid("class count");
    }
    *at += plane::kSize;
    if (header_.coder == Coder::kTree && classes > 1) {
      if (i + 1 < n_planes) return invalid("tree in a side plane");
      Result<Tree> tree = Tree::parse(data_ + *at, size_ - *at, classes);
      if (!tree.ok()) return tree.status();
      plane.tree = std::move(tree.value());
      plane.tree_classes = static_cast<uint32_t>(classes);
      *at += plane.tree.stored_bytes();
    } else if (Status status = parse_frequencies(classes, &plane, at);
               !status.ok()) {
      return status;
    }
    if (palette == 1) {
      const size_t entries = classes << plane.raw_bits;
      if (entries > 256 || size_ - *at < entries) return invalid("palette");
      plane.palette.assign(data_ + *at, data_ + *at + entries);
      *at += entries;
    }
    header_.planes.push_back(std::move(plane));
  }
  return {};
}

Status Container::parse_frequencies(size_t classes, Plane* plane,
                                    size_t* at) const {
  if (size_ - *at < 2 * classes) return invalid("truncated plane table");
  const uint32_t total = uint32_t{1} << header_.limits().precision_bits;
  uint32_t sum = 0;
  for (size_t c = 0; c < classes; ++c, *at += 2) {
    const uint32_t frequency = load<uint16_t>(data_ + *at);
    // A certain class among several would not fit the decoder's field.
    if (classes > 1 && frequency >= total) return invalid("frequency");
    plane->frequencies.push_back(static_cast<uint16_t>(frequency));
    sum += frequency;
  }
  if (sum != total) {
    return invalid("frequencies sum to " + std::to_string(sum) + ", not " +
                   std::to_string(total));
  }
  return {};
}

Status Container::check_geometry() const {
  const MatrixHeader& h = header_;
  if (!planes_match(h)) return invalid("planes do not match the scheme");
  if (h.rows == 0 || h.cols == 0 || h.tile_rows == 0) {
    return invalid("empty shape");
  }
  if (uint64_t{h.rows} * h.cols > kMaxSymbols ||
      uint64_t{std::min(h.tile_rows, h.rows)} * h.cols > kMaxTileSymbols) {
    return invalid("shape too large");
  }
  if (h.tiles != ceil_div(h.rows, h.tile_rows)) return invalid("tile count");
  if (h.tiles > 1 && h.tile_rows % row_unit(h.cols) != 0) {
    return invalid("tiles do not start on a step");
  }
  if (h.scheme == Scheme::kAffine) {
    if (!one_of(h.bits, {2, 3, 4, 5, 6, 8})) return invalid("bits");
    if (!one_of(h.group_size, {32, 64, 128})) return invalid("group size");
    if (h.cols % h.group_size != 0) return invalid("group size");
    if (h.float_type == FloatType::kNone) return invalid("float type");
  } else if (h.group_size != 0) {
    return invalid("group size");
  } else if (h.scheme == Scheme::kFloat) {
    if (h.float_type == FloatType::kNone || h.bits != bit_width(h.float_type)) {
      return invalid("float type");
    }
  } else if (h.bits != 8 || h.float_type != FloatType::kNone) {
    return invalid("symbol type");
  }
  for (const Plane& plane : h.planes) {
    const int width = h.value_bits(plane);
    if (plane.raw_bits + plane.shift > width) return invalid("raw bits");
    for (uint8_t value : plane.palette) {
      if (value >> width != 0) return invalid("palette");
    }
    const uint64_t largest =
        plane.base +
        (((uint64_t{plane.classes()} << plane.raw_bits) - 1) << plane.shift);
    if (largest >= uint64_t{1} << width) return invalid("class range");
  }
  return {};
}

Status Container::check_tiles() const {
  const uint64_t table_bytes = 8 * (uint64_t{header_.tiles} + 1);
  if (size_ - tile_table_ < table_bytes + kTailPadding) {
    return invalid("truncated tile table");
  }
  const uint64_t begin = tile_table_ + table_bytes;
  uint64_t end = begin;
  for (uint32_t i = 0; i <= header_.tiles; ++i) {
    const uint64_t offset = load<uint64_t>(data_ + tile_table_ + 8 * size_t{i});
    if (offset < end || offset > size_ - kTailPadding ||
        (i == 0 && offset != begin)) {
      return invalid("tile offset " + std::to_string(i));
    }
    end = offset;
  }
  if (size_ != ceil_div(end + kTailPadding, kSizeMultiple) * kSizeMultiple) {
    return invalid("tail padding");
  }
  for (uint32_t i = 0; i < header_.tiles; ++i) {
    if (Status status = check_tile(i); !status.ok()) return status;
  }
  for (size_t i = end; i < size_; ++i) {
    if (data_[i] != 0) return invalid("tail padding is not zero");
  }
  return {};
}

Status Container::check_tile(uint32_t index) const {
  const auto bad = [index](const char* what) {
    return invalid("tile " + std::to_string(index) + ": " + what);
  };
  const size_t n_planes = header_.planes.size();
  const uint8_t* const begin = tile_begin(index);
  const uint64_t size = static_cast<uint64_t>(tile_begin(index + 1) - begin);
  uint64_t needed = 4 * n_planes;
  if (size < needed) return bad("truncated");
  if (header_.has_states()) needed += kLanes * header_.limits().state_bytes;
  const uint64_t rows = header_.rows_in_tile(index);
  for (size_t i = 0; i < n_planes; ++i) {
    const Plane& plane = header_.planes[i];
    const uint64_t steps = ceil_div(header_.values(plane, rows), kLanes);
    needed += steps * raw_step_bytes(plane.raw_bits);
    needed += uint64_t{load<uint32_t>(begin + 4 * i)} * kExceptionSize;
  }
  if (size < needed) return bad("truncated");
  if (!header_.any_coded() && size != needed) return bad("trailing bytes");
  const Tile view = tile(index);
  if (header_.has_states() && !states_in_range(view)) return bad("lane state");
  for (size_t i = 0; i < n_planes; ++i) {
    const TilePlane& plane = view.planes[i];
    const uint64_t limit = uint64_t{1} << header_.value_bits(header_.planes[i]);
    int64_t previous = -1;
    for (size_t e = 0; e < plane.n_exceptions; ++e) {
      const Exception exception = plane.exception(e);
      if (exception.index >= plane.values || exception.index <= previous) {
        return bad("exception index");
      }
      if (exception.value >= limit) return bad("exception value");
      previous = exception.index;
    }
  }
  return {};
}

bool Container::states_in_range(const Tile& tile) const {
  const CoderLimits& limits = header_.limits();
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const uint8_t* const p = tile.states + lane * limits.state_bytes;
    const uint32_t state =
        limits.state_bytes == 2 ? load<uint16_t>(p) : load<uint32_t>(p);
    if (state < limits.initial_state) return false;
  }
  return true;
}

Tile Container::tile(uint32_t index) const {
  const size_t n_planes = header_.planes.size();
  const uint8_t* const begin = tile_begin(index);
  Tile tile;
  tile.rows = header_.rows_in_tile(index);
  const uint8_t* p = begin + 4 * n_planes;
  tile.states = p;
  if (header_.has_states()) p += kLanes * header_.limits().state_bytes;
  for (size_t i = 0; i < n_planes; ++i) {
    TilePlane& plane = tile.planes[i];
    plane.values = header_.values(header_.planes[i], tile.rows);
    plane.raw = p;
    p += plane.steps() * raw_step_bytes(header_.planes[i].raw_bits);
  }
  for (size_t i = 0; i < n_planes; ++i) {
    TilePlane& plane = tile.planes[i];
    plane.exceptions = p;
    plane.n_exceptions = load<uint32_t>(begin + 4 * i);
    p += plane.n_exceptions * kExceptionSize;
  }
  tile.stream = p;
  tile.stream_end = tile_begin(index + 1);
  return tile;
}

uint64_t Container::exceptions(size_t plane) const {
  uint64_t count = 0;
  for (uint32_t i = 0; i < header_.tiles; ++i) {
    count += load<uint32_t>(tile_begin(i) + 4 * plane);
  }
  return count;
}

Status Container::check_hash() const {
  const uint64_t stored = load<uint64_t>(data_ + header::kChecksumAt);
  if (xxh64(data_ + header::kRowsAt, size_ - header::kRowsAt) != stored) {
    return invalid("checksum mismatch");
  }
  return {};
}

}  // namespace mlx_entropy
