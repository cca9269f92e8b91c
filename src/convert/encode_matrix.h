// The write path: planes -> classes and raw bits -> streams -> container.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "convert/plane_plan.h"
#include "format/writer.h"
#include "quant/affine.h"
#include "quant/plane_source.h"

namespace mlx_entropy {

enum class Codec : uint8_t {
  kRans,  // smallest
  kTree,  // fastest to decode: everything but the weights plane is raw
};

struct EncodeOptions {
  Codec codec = Codec::kRans;
  // Of trees: bits that a merge pass over a value is worth; see plan_tree.
  // Without it trees stay within a few percent of the entropy.
  std::optional<double> pass_cost;

  // Rows of a tile, 0 to choose. Rounded up so that tiles start on a step.
  uint32_t tile_rows = 0;
  // If not 0: every multiple of so many rows starts a tile, so that each block
  // (an expert) can be decoded alone. Divides the rows.
  uint32_t block_rows = 0;
  // Frequencies of a symbols plane, instead of those of its own histogram.
  std::optional<std::vector<uint16_t>> frequencies;
};

// Asks for the coded matrix's memory when `source` is not needed any more.
// `histograms` are those of the source's planes, where they are known.
Status encode_matrix(const PlaneSource& source, const EncodeOptions& options,
                     const Memory& memory,
                     const std::vector<PlaneHistogram>* histograms = nullptr);
Result<std::vector<uint8_t>> encode_matrix(const PlaneSource& source,
                                           const EncodeOptions& options);

// Codes with predicted or stored biases, whichever is smaller.
Status encode_affine(const AffineArrays& arrays, const EncodeOptions& options,
                     const Memory& memory);
Result<std::vector<uint8_t>> encode_affine(const AffineArrays& arrays,
                                           const EncodeOptions& options);

// Frequencies for an alphabet of any size up to 256: with 8 bits of precision
// for at most 16 symbols, else 12. Symbols too rare for it get 0.
std::vector<uint16_t> table_from_counts(std::span<const uint64_t> counts);

}  // namespace mlx_entropy
