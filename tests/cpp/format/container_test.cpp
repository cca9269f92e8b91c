#include "format/container.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/bits.h"
#include "format/writer.h"
#include "support/bytes.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;

// Three tiles of raw float16 values with one exception in the second.
MatrixHeader float_header() {
  MatrixHeader header;
  header.scheme = Scheme::kFloat;
  header.rows = 5;
  header.cols = 32;
  header.tile_rows = 2;
  header.tiles = 3;
  header.bits = 16;
  header.float_type = FloatType::kFloat16;
  Plane& plane = header.planes.emplace_back();
  plane.kind = PlaneKind::kFloats;
  plane.raw_bits = 10;
  plane.shift = 2;
  plane.base = 3;
  plane.frequencies = {256};
  return header;
}

Bytes float_bytes() {
  std::vector<TilePayload> tiles(3);
  for (TilePayload& tile : tiles) {
    tile.exception_counts = {0};
    tile.raw.assign(raw_step_bytes(10), 0xa5);
  }
  tiles[1].exception_counts = {1};
  tiles[1].exceptions = {{63, 0xffff}};
  return write_container(float_header(), tiles);
}

std::string error_of(const Bytes& bytes) {
  const auto container = Container::parse(bytes.data(), bytes.size());
  return container.ok() ? "" : container.status().message();
}

void expect_error(const Bytes& bytes, const std::string& part) {
  EXPECT_NE(error_of(bytes).find(part), std::string::npos)
      << "\"" << error_of(bytes) << "\" should say \"" << part << "\"";
}

template <class T>
Bytes with(Bytes bytes, size_t at, T value) {
  store(bytes.data() + at, value);
  return bytes;
}

TEST(Container, ReadsWhatTheWriterWrote) {
  const Bytes bytes = float_bytes();
  const auto result = Container::parse(bytes.data(), bytes.size());
  ASSERT_TRUE(result.ok()) << result.status().message();
  const Container& container = result.value();
  EXPECT_TRUE(container.check_hash().ok());
  EXPECT_EQ(bytes.size() % kSizeMultiple, 0u);
  const MatrixHeader& header = container.header();
  EXPECT_EQ(header.scheme, Scheme::kFloat);
  EXPECT_EQ(header.rows, 5u);
  EXPECT_EQ(header.cols, 32u);
  EXPECT_EQ(header.rows_in_tile(0), 2u);
  EXPECT_EQ(header.rows_in_tile(2), 1u);
  EXPECT_FALSE(header.any_coded());
  ASSERT_EQ(header.planes.size(), 1u);
  EXPECT_EQ(header.planes[0].raw_bits, 10);
  EXPECT_EQ(header.planes[0].shift, 2);
  EXPECT_EQ(header.planes[0].base, 3u);
  EXPECT_EQ(container.exceptions(0), 1u);
  const Tile tile = container.tile(1);
  EXPECT_EQ(tile.rows, 2u);
  EXPECT_EQ(tile.planes[0].values, 64u);
  ASSERT_EQ(tile.planes[0].n_exceptions, 1u);
  EXPECT_EQ(tile.planes[0].exception(0).index, 63u);
  EXPECT_EQ(tile.planes[0].exception(0).value, 0xffffu);
  EXPECT_EQ(tile.stream, tile.stream_end);
  EXPECT_EQ(container.tile(2).planes[0].values, 32u);
}

TEST(Container, RejectsABadHeader) {
  const Bytes bytes = float_bytes();
  expect_error(with(bytes, header::kMagicAt, uint32_t{0}), "magic");
  expect_error(with(bytes, header::kVersionAt, uint16_t{2}), "version 2");
  expect_error(with(bytes, header::kSchemeAt, uint8_t{3}), "scheme");
  expect_error(with(bytes, header::kCoderAt, uint8_t{8}), "coder");
  expect_error(with(bytes, header::kTotalBytesAt, uint64_t{1}), "header says");
  expect_error(with(bytes, header::kRowsAt, uint32_t{0}), "empty");
  expect_error(with(bytes, header::kTilesAt, uint32_t{2}), "tile count");
  expect_error(with(bytes, header::kBitsAt, uint8_t{32}), "float type");
  expect_error(with(bytes, header::kFloatTypeAt, uint8_t{4}), "float type");
  expect_error(with(bytes, header::kGroupSizeAt, uint16_t{32}), "group size");
  expect_error(with(bytes, header::kPlanesAt, uint8_t{0}), "plane count");
  expect_error(with(bytes, header::kPlanesAt, uint8_t{5}), "plane count");
  expect_error(with(bytes, header::kReservedAt + 2, uint8_t{1}), "reserved");
}

TEST(Container, RejectsABadPlane) {
  const Bytes bytes = float_bytes();
  const auto plane = [&](size_t field, auto value) {
    return with(bytes, header::kSize + field, value);
  };
  expect_error(plane(plane::kKindAt, uint8_t{0}), "scheme");
  expect_error(plane(plane::kKindAt, uint8_t{6}), "kind");
  expect_error(plane(plane::kRawBitsAt, uint8_t{15}), "raw bits");
  expect_error(plane(plane::kRawBitsAt, uint8_t{255}), "raw bits");
  expect_error(plane(plane::kShiftAt, uint8_t{255}), "raw bits");
  expect_error(plane(plane::kPaletteAt, uint8_t{1}), "palette");
  expect_error(plane(plane::kPaletteAt, uint8_t{2}), "palette");
  expect_error(plane(plane::kClassesAt, uint32_t{0}), "class count");
  expect_error(plane(plane::kClassesAt, ~uint32_t{0}), "class count");
  expect_error(plane(plane::kBaseAt, ~uint32_t{0}), "class range");
  expect_error(plane(plane::kSize, uint16_t{255}), "sum");
}

TEST(Container, RejectsBadTiles) {
  const Bytes bytes = float_bytes();
  const size_t table = header::kSize + plane::kSize + 2;
  const size_t first = table + 8 * 4;
  const size_t second = first + 4 + raw_step_bytes(10);
  const size_t exception = second + 4 + raw_step_bytes(10);
  expect_error(with(bytes, table, uint64_t{first + 1}), "tile offset 0");
  expect_error(with(bytes, table + 8, uint64_t{first - 1}), "tile offset 1");
  expect_error(with(bytes, table + 8, ~uint64_t{0}), "tile offset 1");
  expect_error(with(bytes, table + 16, load<uint64_t>(&bytes[table + 24])),
               "tile 1: trailing");
  expect_error(with(bytes, table + 16, load<uint64_t>(&bytes[table + 8])),
               "tile 1: truncated");
  expect_error(with(bytes, table + 24, uint64_t{first}), "tile offset 3");
  expect_error(with(bytes, first, uint32_t{1}), "tile 0: truncated");
  expect_error(with(bytes, first, ~uint32_t{0}), "tile 0: truncated");
  expect_error(with(bytes, second, uint32_t{0}), "tile 1: trailing");
  expect_error(with(bytes, exception, uint32_t{64}), "exception index");
  expect_error(with(bytes, exception + 4, uint32_t{65536}), "exception value");
  expect_error(with(bytes, bytes.size() - 1, uint8_t{1}), "padding");
}

TEST(Container, ChecksumCoversEverythingAfterIt) {
  const Bytes bytes = float_bytes();
  for (size_t at = header::kChecksumAt; at < bytes.size(); ++at) {
    Bytes changed = bytes;
    changed[at] ^= 0x10;
    const auto container = Container::parse(changed.data(), changed.size());
    if (container.ok()) {
      EXPECT_FALSE(container.value().check_hash().ok()) << at;
    }
  }
}

TEST(Container, RejectsEveryTruncation) {
  const Bytes bytes = float_bytes();
  for (size_t size = 0; size < bytes.size(); ++size) {
    Bytes cut = testing::tight_copy(bytes.data(), size);
    EXPECT_FALSE(Container::parse(cut.data(), cut.size()).ok()) << size;
    testing::fix_size(&cut);
    EXPECT_FALSE(Container::parse(cut.data(), cut.size()).ok()) << size;
  }
}

TEST(Container, RowUnitFillsWholeSteps) {
  for (uint32_t cols = 1; cols < 300; ++cols) {
    const uint32_t unit = row_unit(cols);
    EXPECT_EQ(unit * cols % kLanes, 0u);
    for (uint32_t fewer = 1; fewer < unit; ++fewer) {
      EXPECT_NE(fewer * cols % kLanes, 0u);
    }
  }
}

}  // namespace
}  // namespace mlx_entropy
