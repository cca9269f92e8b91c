// Constants and field offsets of the coded matrix, version 1.
// docs/format.md is normative; this header is its transcription.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlx_entropy {

inline constexpr uint32_t kMagic = 0x4345584d;  // "MXEC"
inline constexpr uint16_t kVersion = 1;

// Symbols are dealt to 64 lanes in turn: symbol i of a tile is in lane i % 64.
inline constexpr size_t kLanes = 64;

// Zero bytes after the last tile. A decoder may load whole vectors that start
// inside the last stream, at most 128 bytes wide, and end in here.
inline constexpr size_t kTailPadding = 192;

// Total size is the next multiple of this, so that matrices stored one after
// the other all start on a cache line.
inline constexpr size_t kSizeMultiple = 64;

inline constexpr size_t kMaxPlanes = 4;

// Bounds that keep every size computation and every scratch buffer small
// enough to allocate, whatever a file claims.
inline constexpr uint64_t kMaxTileSymbols = uint64_t{1} << 26;
inline constexpr uint64_t kMaxSymbols = uint64_t{1} << 40;

enum class Scheme : uint8_t { kSymbols = 0, kAffine = 1, kFloat = 2 };

// How classes are coded; see CoderLimits for the first two. "tree" codes only
// the weights plane, and all other planes are raw.
enum class Coder : uint8_t { kTree = 0, kRans16 = 16, kRans32 = 32 };

enum class PlaneKind : uint8_t {
  kCodes = 0,        // quantized weights, or symbols
  kScales = 1,       // group scales, sign in the lowest bit
  kOffsets = 2,      // integer k of bias = round(scale * k) + correction
  kCorrections = 3,  // distance of the bias from round(scale * k)
  kBiases = 4,       // group biases stored whole, sign in the lowest bit
  kFloats = 5,       // floating-point weights, sign in the lowest bit
};

// Signed planes are stored with these added.
inline constexpr uint32_t kOffsetBias = uint32_t{1} << 15;
inline constexpr uint32_t kCorrectionBias = uint32_t{1} << 31;

// Header: byte offsets of its fields. All integers are little-endian.
namespace header {
inline constexpr size_t kMagicAt = 0;       // u32
inline constexpr size_t kVersionAt = 4;     // u16
inline constexpr size_t kSchemeAt = 6;      // u8
inline constexpr size_t kCoderAt = 7;       // u8: Coder
inline constexpr size_t kTotalBytesAt = 8;  // u64
inline constexpr size_t kChecksumAt = 16;   // u64: XXH64 of bytes 24..total
inline constexpr size_t kRowsAt = 24;       // u32
inline constexpr size_t kColsAt = 28;       // u32
inline constexpr size_t kTileRowsAt = 32;   // u32
inline constexpr size_t kTilesAt = 36;      // u32
inline constexpr size_t kBitsAt = 40;       // u8: width of a code or value
inline constexpr size_t kFloatTypeAt = 41;  // u8
inline constexpr size_t kGroupSizeAt = 42;  // u16
inline constexpr size_t kPlanesAt = 44;     // u8
inline constexpr size_t kReservedAt = 45;   // 3 bytes of zero
inline constexpr size_t kSize = 48;
}  // namespace header

// Plane descriptor: these 12 bytes, a u16 frequency for each class (or with
// several classes in a tree container the tree, see format/tree.h), and if
// there is a palette a byte for each of the classes << raw_bits indices.
//   index = class << raw_bits | raw
//   value = palette[index]  or  base + (index << shift)
namespace plane {
inline constexpr size_t kKindAt = 0;     // u8
inline constexpr size_t kRawBitsAt = 1;  // u8
inline constexpr size_t kShiftAt = 2;    // u8
inline constexpr size_t kPaletteAt = 3;  // u8: 1 if there is a palette
inline constexpr size_t kClassesAt = 4;  // u32
inline constexpr size_t kBaseAt = 8;     // u32
inline constexpr size_t kSize = 12;
}  // namespace plane

inline constexpr size_t kExceptionSize = 8;  // u32 index, u32 value

// Two coders. "rans16" has 16-bit states, 8-bit frequencies and byte
// renormalization; "rans32" 32-bit states, 12-bit frequencies and 16-bit
// renormalization.
struct CoderLimits {
  int precision_bits;
  int max_classes;
  size_t state_bytes;
  uint32_t initial_state;  // also the lower bound of the state interval
};

inline constexpr CoderLimits kRans16 = {8, 16, 2, 1u << 8};
inline constexpr CoderLimits kRans32 = {12, 256, 4, 1u << 16};

// A tree has no states, and a raw plane's only class the frequency 1.
inline constexpr CoderLimits kTreeLimits = {0, 256, 0, 0};

inline constexpr const CoderLimits& coder_limits(Coder coder) {
  return coder == Coder::kRans16   ? kRans16
         : coder == Coder::kRans32 ? kRans32
                                   : kTreeLimits;
}

// Raw bits of one step of 64 values: whole bytes as 64-byte planes, lowest
// byte first, then each remaining bit as an 8-byte mask, lowest bit first.
inline constexpr size_t raw_step_bytes(int raw_bits) {
  return static_cast<size_t>(raw_bits / 8) * kLanes +
         static_cast<size_t>(raw_bits % 8) * (kLanes / 8);
}

}  // namespace mlx_entropy
