#include "convert/encode_matrix.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "base/bits.h"
#include "base/thread_pool.h"
#include "codec/rans/encode.h"
#include "codec/rans/model.h"
#include "codec/tree/encode.h"
#include "convert/histograms.h"
#include "convert/plane_plan.h"
#include "format/writer.h"

namespace mlx_entropy {
namespace {

// The 64 lane states and the offsets of a tile take about 150 bytes. Small
// matrices still get a few tiles, for threads and for streams in flight; large
// ones get tiles big enough to make those bytes vanish.
constexpr uint64_t kSmallTile = 48 * 1024;
constexpr uint64_t kLargeTile = 256 * 1024;
constexpr uint64_t kTilesWanted = 8;

// rans32 decodes at a third of the speed of rans16, so it must save this much
// of the size to be chosen.
constexpr double kWideGain = 0.01;

uint32_t choose_tile_rows(const MatrixHeader& header,
                          const EncodeOptions& options) {
  const uint32_t unit = row_unit(header.cols);
  const uint64_t most =
      std::max<uint64_t>(unit, kMaxTileSymbols / header.cols / unit * unit);
  uint64_t rows = options.tile_rows;
  if (rows == 0) {
    const uint64_t symbols = uint64_t{header.rows} * header.cols;
    const uint64_t target =
        std::clamp(symbols / kTilesWanted, kSmallTile, kLargeTile);
    const uint64_t tiles =
        std::max<uint64_t>(1, (symbols + target / 2) / target);
    rows = ceil_div(header.rows, tiles);
  }
  rows = std::min(ceil_div(rows, unit) * unit, most);
  if (options.block_rows != 0) {
    // The largest part of a block that is a whole number of steps.
    rows = std::min<uint64_t>(rows, options.block_rows);
    while (rows > unit && options.block_rows % rows != 0) rows -= unit;
  }
  return static_cast<uint32_t>(std::min<uint64_t>(rows, header.rows));
}

Status check_blocks(const MatrixHeader& header, uint32_t block_rows) {
  if (block_rows == 0 || block_rows == header.rows) return {};
  if (header.rows % block_rows != 0 ||
      block_rows % row_unit(header.cols) != 0) {
    return Status::error("blocks of " + std::to_string(block_rows) +
                         " rows do not divide " + std::to_string(header.rows) +
                         " x " + std::to_string(header.cols) +
                         " into whole steps of 64");
  }
  return {};
}

// Splits the values of one plane of one tile.
class PlaneSplitter {
 public:
  PlaneSplitter(const Plane& plane)
      : base_(plane.base), raw_bits_(plane.raw_bits), shift_(plane.shift) {
    const auto& f = plane.frequencies;
    live_.assign(plane.classes(), 0);
    for (size_t i = 0; i < f.size(); ++i) live_[i] = f[i] > 0;
    for (uint8_t symbol : plane.tree.symbols) live_[symbol] = 1;
    all_live_ = std::find(live_.begin(), live_.end(), 0) == live_.end();
    if (!plane.palette.empty()) {
      index_of_.assign(256, kNoIndex);
      // Unused entries at the end repeat value 0: the first one wins.
      for (size_t i = plane.palette.size(); i-- > 0;) {
        index_of_[plane.palette[i]] = static_cast<uint32_t>(i);
      }
    }
    placeholder_ = !plane.tree.empty()
                       ? plane.tree.symbols.front()
                       : static_cast<uint8_t>(
                             std::max_element(f.begin(), f.end()) - f.begin());
  }

  // `classes` has room for whole steps; padding gets the likeliest class.
  void split(const uint32_t* values, size_t count, uint8_t* classes,
             TilePayload* tile) const {
    const size_t steps = ceil_div(count, kLanes);
    std::vector<uint32_t> low(raw_bits_ > 0 ? steps * kLanes : 0, 0);
    std::fill(classes + count, classes + steps * kLanes, placeholder_);
    const size_t known = tile->exceptions.size();
    for (size_t first = 0; first < count; first += kLanes) {
      const size_t n = std::min(kLanes, count - first);
      uint32_t* const raw = raw_bits_ > 0 ? &low[first] : nullptr;
      uint32_t indices[kLanes];
      find_indices(values + first, n, indices);
      if (!split_step(indices, n, classes + first, raw)) {
        take_exceptions(values, indices, first, n, classes + first, raw, tile);
      }
    }
    tile->exception_counts.push_back(
        static_cast<uint32_t>(tile->exceptions.size() - known));
    put_raw(low, steps, &tile->raw);
  }

 private:
  void find_indices(const uint32_t* values, size_t n, uint32_t* out) const {
    if (shift_ == 0 && index_of_.empty()) {
      for (size_t i = 0; i < n; ++i) out[i] = values[i] - base_;
    } else {
      for (size_t i = 0; i < n; ++i) out[i] = index_of(values[i]);
    }
  }

  // False when some value is outside the table.
  bool split_step(const uint32_t* indices, size_t n, uint8_t* classes,
                  uint32_t* raw) const {
    const uint32_t mask = raw_mask();
    const auto n_classes = static_cast<uint32_t>(live_.size());
    uint32_t outside = 0;
    // Shifts by 32 and more are undefined, and 64-bit ones do not vectorize.
    const int shift = std::min(raw_bits_, 31);
    for (size_t i = 0; i < n; ++i) {
      const uint32_t klass = raw_bits_ > 31 ? 0 : indices[i] >> shift;
      classes[i] = static_cast<uint8_t>(klass);
      outside |= klass >= n_classes;
    }
    if (raw != nullptr) {
      for (size_t i = 0; i < n; ++i) raw[i] = indices[i] & mask;
    }
    if (outside != 0 || all_live_) return outside == 0;
    for (size_t i = 0; i < n; ++i) outside |= !live_[classes[i]];
    return outside == 0;
  }

  void take_exceptions(const uint32_t* values, const uint32_t* indices,
                       size_t first, size_t n, uint8_t* classes, uint32_t* raw,
                       TilePayload* tile) const {
    for (size_t i = 0; i < n; ++i) {
      const uint32_t value = values[first + i];
      const uint32_t klass = class_of(indices[i]);
      if (klass < live_.size() && live_[klass]) continue;
      classes[i] = placeholder_;
      if (raw != nullptr) raw[i] = 0;
      tile->exceptions.push_back({static_cast<uint32_t>(first + i), value});
    }
  }

  uint32_t index_of(uint32_t value) const {
    if (!index_of_.empty()) return value < 256 ? index_of_[value] : kNoIndex;
    return static_cast<uint32_t>(uint64_t{value - base_} >> shift_);
  }
  uint32_t class_of(uint32_t index) const {
    return static_cast<uint32_t>(uint64_t{index} >> raw_bits_);
  }
  uint32_t raw_mask() const {
    return raw_bits_ == 32 ? ~uint32_t{0} : (uint32_t{1} << raw_bits_) - 1;
  }

  void put_raw(const std::vector<uint32_t>& low, size_t steps,
               std::vector<uint8_t>* raw) const {
    size_t at = raw->size();
    raw->resize(at + steps * raw_step_bytes(raw_bits_));
    for (size_t step = 0; step < steps && raw_bits_ > 0; ++step) {
      const uint32_t* const v = &low[step * kLanes];
      int shift = 0;
      for (; shift + 8 <= raw_bits_; shift += 8, at += kLanes) {
        for (size_t i = 0; i < kLanes; ++i) {
          (*raw)[at + i] = static_cast<uint8_t>(v[i] >> shift);
        }
      }
      for (; shift < raw_bits_; ++shift, at += 8) {
        uint64_t bits = 0;
        for (size_t i = 0; i < kLanes; ++i) {
          bits |= uint64_t{(v[i] >> shift) & 1} << i;
        }
        store(raw->data() + at, bits);
      }
    }
  }

  // Beyond every class, unless the plane has no table at all.
  static constexpr uint32_t kNoIndex = ~uint32_t{0};

  uint32_t base_;
  int raw_bits_;
  int shift_;
  std::vector<uint32_t> index_of_;  // with a palette: of each value
  std::vector<uint8_t> live_;
  bool all_live_ = false;
  uint8_t placeholder_ = 0;
};

struct MatrixPlan {
  std::vector<Plane> planes;
  double bits = 0;
};

MatrixPlan plan_matrix(const std::vector<PlaneHistogram>& histograms,
                       const MatrixHeader& header, Coder coder) {
  MatrixPlan plan;
  for (size_t p = 0; p < histograms.size(); ++p) {
    PlanePlan best = plan_plane(header.planes[p].kind, histograms[p], coder);
    plan.bits += best.bits;
    plan.planes.push_back(std::move(best.plane));
  }
  // About three quarters of the stored state bits carry no information.
  plan.bits += 0.75 * 8.0 *
               static_cast<double>(coder_limits(coder).state_bytes) * kLanes *
               header.tiles;
  return plan;
}

void choose_planes(const PlaneSource& source, const EncodeOptions& options,
                   const std::vector<PlaneHistogram>* known,
                   MatrixHeader* header) {
  if (options.frequencies) {
    header->coder = options.frequencies->size() <= size_t{kRans16.max_classes}
                        ? Coder::kRans16
                        : Coder::kRans32;
    Plane& plane = header->planes[0];
    plane.frequencies = *options.frequencies;
    const uint32_t total = uint32_t{1} << header->limits().precision_bits;
    const auto certain =
        std::find(plane.frequencies.begin(), plane.frequencies.end(), total);
    if (certain != plane.frequencies.end()) {
      plane.base = static_cast<uint32_t>(certain - plane.frequencies.begin());
      plane.frequencies = {static_cast<uint16_t>(total)};
    }
    return;
  }
  const std::vector<PlaneHistogram> histograms =
      known != nullptr ? *known : count_values(source, *header);
  if (options.codec == Codec::kTree) {
    header->coder = Coder::kTree;
    for (size_t p = 0; p < histograms.size(); ++p) {
      const PlaneKind kind = header->planes[p].kind;
      const bool is_weights = p + 1 == histograms.size();
      PlanePlan plan =
          is_weights ? plan_tree_plane(kind, histograms[p], options.pass_cost)
                     : plan_plane(kind, histograms[p], Coder::kTree);
      header->planes[p] = std::move(plan.plane);
    }
    return;
  }
  MatrixPlan narrow = plan_matrix(histograms, *header, Coder::kRans16);
  MatrixPlan wide = plan_matrix(histograms, *header, Coder::kRans32);
  const bool use_wide = wide.bits < narrow.bits * (1 - kWideGain);
  header->coder = use_wide ? Coder::kRans32 : Coder::kRans16;
  header->planes = use_wide ? wide.planes : narrow.planes;
}

// Coded size of the planes that precede the weights plane, for a sample of
// the matrix: enough to choose between two ways to code them.
double sampled_side_bits(const PlaneSource& source) {
  constexpr uint64_t kSamples = 16, kSampleValues = 1024;
  MatrixHeader header = source.describe();
  header.planes.pop_back();
  if (header.rows == 0 || header.cols == 0) return 0;
  std::vector<PlaneHistogram> histograms = make_histograms(header);
  for (size_t p = 0; p < header.planes.size(); ++p) {
    const uint64_t total = header.values(header.planes[p], header.rows);
    const uint64_t stride = std::max(total / kSamples, kSampleValues) / 8 * 8;
    for (uint64_t first = 0; first < total; first += stride) {
      count_range(source, p, first, std::min(kSampleValues, total - first),
                  &histograms[p]);
    }
  }
  return plan_matrix(histograms, header, Coder::kRans16).bits;
}

// Whether each value of the plane is its class, and all that there is of it.
// A tree for every value that occurs leaves no exceptions.
bool is_identity(const Plane& plane, int value_bits) {
  return !plane.tree.empty() && plane.base == 0 && plane.raw_bits == 0 &&
         plane.shift == 0 && plane.tree_classes == uint32_t{1} << value_bits;
}

class TileEncoder {
 public:
  TileEncoder(const PlaneSource& source, const MatrixHeader& header)
      : source_(source), header_(header) {
    for (const Plane& plane : header.planes) {
      splitters_.emplace_back(plane);
      if (!plane.tree.empty()) tree_.emplace(plane.tree);
      tables_.emplace_back(
          plane.coded() && plane.tree.empty()
              ? std::make_unique<EncoderTable>(plane.frequencies, header.coder)
              : nullptr);
    }
  }

  TilePayload encode(uint32_t index) const {
    const size_t n_planes = header_.planes.size();
    const uint64_t row = uint64_t{index} * header_.tile_rows;
    const uint64_t rows = header_.rows_in_tile(index);
    TilePayload tile;
    std::vector<std::unique_ptr<uint8_t[]>> classes(n_planes);
    std::vector<size_t> steps(n_planes);
    size_t symbols = 0;
    const uint8_t* weights = nullptr;  // classes of a tree's plane
    for (size_t p = 0; p < n_planes; ++p) {
      const Plane& plane = header_.planes[p];
      const size_t count = header_.values(plane, rows);
      if (const uint8_t* const bytes = source_.bytes(p);
          bytes != nullptr && is_identity(plane, header_.value_bits(plane))) {
        weights = bytes + header_.values(plane, row);
        tile.exception_counts.push_back(0);
        continue;
      }
      steps[p] = ceil_div(count, kLanes);
      classes[p] = std::make_unique_for_overwrite<uint8_t[]>(steps[p] * kLanes);
      auto values = std::make_unique_for_overwrite<uint32_t[]>(count + 8);
      source_.read(p, header_.values(plane, row), count, values.get());
      splitters_[p].split(values.get(), count, classes[p].get(), &tile);
      if (plane.coded()) symbols += steps[p] * kLanes;
    }
    if (!header_.any_coded()) return tile;
    if (tree_) {
      if (weights == nullptr) weights = classes.back().get();
      const size_t block = size_t{tree_block_rows(header_.cols)} * header_.cols;
      const size_t count = rows * header_.cols;
      for (size_t first = 0; first < count; first += block) {
        tree_->append(weights + first, std::min(block, count - first),
                      &tile.stream);
      }
      return tile;
    }
    StreamEncoder stream(header_.coder, symbols);
    for (size_t p = n_planes; p-- > 0;) {
      if (tables_[p])
        stream.push_section(*tables_[p], classes[p].get(), steps[p]);
    }
    tile.states = stream.states();
    tile.stream.assign(stream.stream().begin(), stream.stream().end());
    return tile;
  }

 private:
  const PlaneSource& source_;
  const MatrixHeader& header_;
  std::vector<PlaneSplitter> splitters_;
  std::vector<std::unique_ptr<EncoderTable>> tables_;
  std::optional<TreeEncoder> tree_;
};

}  // namespace

Status encode_matrix(const PlaneSource& source, const EncodeOptions& options,
                     const Memory& memory,
                     const std::vector<PlaneHistogram>* histograms) {
  MatrixHeader header = source.describe();
  if (header.rows == 0 || header.cols == 0) {
    return Status::error("cannot code an empty matrix");
  }
  const uint64_t unit_symbols = uint64_t{row_unit(header.cols)} * header.cols;
  if (uint64_t{header.rows} * header.cols > kMaxSymbols ||
      unit_symbols > kMaxTileSymbols) {
    return Status::error("matrix too large: " + std::to_string(header.rows) +
                         " x " + std::to_string(header.cols));
  }
  if (Status status = check_blocks(header, options.block_rows); !status.ok()) {
    return status;
  }
  header.tile_rows = choose_tile_rows(header, options);
  header.tiles = static_cast<uint32_t>(ceil_div(header.rows, header.tile_rows));
  choose_planes(source, options, histograms, &header);
  std::vector<TilePayload> tiles(header.tiles);
  const TileEncoder encoder(source, header);
  ThreadPool::instance().run(header.tiles, [&](size_t tile) {
    tiles[tile] = encoder.encode(static_cast<uint32_t>(tile));
  });
  write_container(header, std::move(tiles), memory);
  return {};
}

Result<std::vector<uint8_t>> encode_matrix(const PlaneSource& source,
                                           const EncodeOptions& options) {
  std::vector<uint8_t> bytes;
  Status status = encode_matrix(source, options, memory_of(&bytes));
  if (!status.ok()) return status;
  return bytes;
}

Status encode_affine(const AffineArrays& arrays, const EncodeOptions& options,
                     const Memory& memory) {
  const AffineSource predicted(arrays, BiasMode::kPredicted);
  const AffineSource stored(arrays, BiasMode::kStored);
  const bool predict =
      sampled_side_bits(predicted) <= sampled_side_bits(stored);
  return encode_matrix(predict ? predicted : stored, options, memory);
}

Result<std::vector<uint8_t>> encode_affine(const AffineArrays& arrays,
                                           const EncodeOptions& options) {
  std::vector<uint8_t> bytes;
  Status status = encode_affine(arrays, options, memory_of(&bytes));
  if (!status.ok()) return status;
  return bytes;
}

std::vector<uint16_t> table_from_counts(std::span<const uint64_t> counts) {
  const CoderLimits& limits =
      counts.size() <= size_t{kRans16.max_classes} ? kRans16 : kRans32;
  const double total = static_cast<double>(
      std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  std::vector<uint64_t> kept(counts.begin(), counts.end());
  for (uint64_t& count : kept) {
    const double escape_bits = static_cast<double>(count) *
                               (8 * kExceptionSize - limits.precision_bits);
    if (escape_bits < total / (1 << limits.precision_bits) * 1.4427) count = 0;
  }
  return quantize_frequencies(kept, limits.precision_bits);
}

}  // namespace mlx_entropy
