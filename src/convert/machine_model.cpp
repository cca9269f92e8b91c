#include "convert/machine_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "base/bandwidth.h"
#include "base/thread_pool.h"
#include "codec/tree/model.h"
#include "convert/encode_matrix.h"
#include "convert/machine_store.h"
#include "kernels/kernels.h"

namespace mlx_entropy {
namespace {

// A matrix for probing: normally distributed codes, equal groups.
struct Probe {
  static constexpr uint32_t kRows = 256, kCols = 2048, kGroup = 64;
  static constexpr double kWeights = double{kRows} * kCols;

  Probe() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(7.5f, 2.6f);
    std::vector<uint8_t> codes(size_t{kRows} * kCols);
    for (uint8_t& code : codes) {
      code = static_cast<uint8_t>(
          std::clamp(std::lround(normal(random)), 0L, 15L));
    }
    packed.resize(codes.size() / 8);
    pack_codes(codes.data(), 4, codes.size(),
               reinterpret_cast<uint8_t*>(packed.data()));
    scales.assign(codes.size() / kGroup, 0x3c00);
    biases.assign(codes.size() / kGroup, 0xc780);  // -7.5
  }

  std::vector<uint8_t> encode(Codec codec,
                              std::optional<double> pass_cost) const {
    EncodeOptions options;
    options.codec = codec;
    options.pass_cost = pass_cost;
    AffineArrays arrays;
    arrays.rows = kRows;
    arrays.cols = kCols;
    arrays.bits = 4;
    arrays.group_size = kGroup;
    arrays.float_type = FloatType::kFloat16;
    arrays.codes = packed.data();
    arrays.scales = scales.data();
    arrays.biases = biases.data();
    return std::move(encode_affine(arrays, options).value());
  }

  std::vector<uint64_t> counts() const {
    std::vector<uint64_t> counts(16, 0);
    for (uint32_t word : packed) {
      for (int i = 0; i < 8; ++i) ++counts[word >> (4 * i) & 15];
    }
    return counts;
  }

  std::vector<uint32_t> packed;
  std::vector<uint16_t> scales, biases;
};

// What was measured, with some room, on machines of each target; relative to a
// product of plain bits. Targets that nobody timed have wide bounds.
struct Bounds {
  const char* target;
  double rans_low, rans_high;
  double compact_low, compact_high;
};
constexpr Bounds kBounds[] = {
    {"avx512", 1.8, 4.0, 1.5, 3.5}, {"avx512bw", 1.8, 5.0, 1.5, 5.5},
    {"avx2", 2.2, 5.0, 2.0, 5.5},   {"neon", 1.2, 6.0, 1.2, 5.5},
    {"scalar", 2.0, 20., 1.5, 20.},
};

// Copies of a matrix in several forms, which fill the last cache twice, so that
// products with one after the other read memory, as those of a model do.
class ColdCopies {
 public:
  using Forms = std::vector<std::vector<uint8_t>>;

  explicit ColdCopies(const Forms& forms) {
    constexpr size_t kMost = size_t{128} << 20, kLeastCopies = 8;
    size_t size = 0;
    for (const auto& form : forms) size += padded(form);
    const size_t wanted = std::min(kMost, 2 * last_cache_bytes());
    bytes_.resize(std::max(kLeastCopies, wanted / size) * size);
    for (size_t at = 0; at < bytes_.size();) {
      for (const auto& form : forms) {
        uint8_t* const to = bytes_.data() + at;
        std::memcpy(to, form.data(), form.size());
        matrices_.push_back(
            std::move(PreparedMatrix::make(to, form.size()).value()));
        at += padded(form);
      }
    }
  }

  // Form after form, copy after copy.
  const auto& matrices() const { return matrices_; }

 private:
  static size_t padded(const std::vector<uint8_t>& form) {
    return ceil_div(form.size(), 64) * 64;
  }

  std::vector<uint8_t> bytes_;
  std::vector<std::shared_ptr<const PreparedMatrix>> matrices_;
};

// Nanoseconds a weight of products with one row in each form, on this thread
// alone. A product is so short that the shortest of many was not interrupted,
// however busy the machine is; and forms take turns, so that a slow moment
// is one for all of them.
std::vector<double> product_times(const ColdCopies::Forms& forms) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::duration<double> kEnough(0.25);
  constexpr size_t kLeastCopies = 8, kPasses = 3;
  const ColdCopies copies(forms);
  const auto& matrices = copies.matrices();
  const MatrixHeader& header = matrices.front()->header();
  Activations x(1, header.cols, header.group_size);
  const std::vector<float> ones(header.cols, 1.0f);
  x.set_row(0, {FloatType::kFloat32, ones.data()}, 0);
  x.seal();
  std::vector<float> y(header.rows);
  ProductArgs args;
  args.batch = 1;
  args.activations = &x;
  args.y = y.data();
  args.y_stride = header.rows;
  const KernelTable& target = x.target();
  std::vector<double> best(forms.size(), HUGE_VAL);
  const auto first = Clock::now();
  for (size_t i = 0; i < kPasses * matrices.size(); ++i) {
    const auto started = Clock::now();
    const bool least = i < kLeastCopies * forms.size();
    if (!least && started - first > kEnough) break;
    args.matrix = matrices[i % matrices.size()].get();
    const uint32_t tiles = args.matrix->header().tiles;
    for (uint32_t tile = 0; tile < tiles; tile += target.max_streams) {
      target.product(args, tile, std::min(target.max_streams, tiles - tile),
                     Scratch::local());
    }
    const std::chrono::duration<double, std::nano> elapsed =
        Clock::now() - started;
    double& time = best[i % forms.size()];
    time = std::min(time, elapsed.count() / Probe::kWeights);
  }
  return best;
}

double memory_bandwidth(size_t threads) {
  constexpr size_t kLeast = size_t{64} << 20, kMost = size_t{512} << 20;
  constexpr size_t kOfThread = size_t{8} << 20;
  constexpr size_t kPasses = 4;
  const size_t wanted = std::max(4 * last_cache_bytes(), kOfThread * threads);
  return burst_bandwidth(std::clamp(wanted, kLeast, kMost), kPasses) / 1e9;
}

}  // namespace

ProbeTimes bounded(const std::string& target, ProbeTimes times) {
  for (const Bounds& bounds : kBounds) {
    if (target != bounds.target) continue;
    times.rans = std::clamp(times.rans, bounds.rans_low * times.flat,
                            bounds.rans_high * times.flat);
    times.compact = std::clamp(times.compact, bounds.compact_low * times.flat,
                               bounds.compact_high * times.flat);
  }
  return times;
}

// The two trees give the line of time against merges.
MachineModel model_from(const ProbeTimes& times) {
  const std::vector<uint64_t> counts = Probe().counts();
  const double flat_merges = choose_tree(counts, kFlatPassCost).merges;
  const double compact_merges = choose_tree(counts, std::nullopt).merges;
  MachineModel machine;
  machine.rans = times.rans;
  // No more than leaves the rest of a product something.
  machine.tree_merge =
      std::clamp((times.compact - times.flat) / (compact_merges - flat_merges),
                 0.0, times.flat / flat_merges);
  machine.tree = std::max(0.0, times.flat - machine.tree_merge * flat_merges);
  return machine;
}

MachineModel measure_machine() {
  const Probe probe;
  const std::string target = active_target().name;
  const std::vector<double> times =
      product_times({probe.encode(Codec::kRans, std::nullopt),
                     probe.encode(Codec::kTree, kFlatPassCost),
                     probe.encode(Codec::kTree, std::nullopt)});
  MachineModel machine =
      model_from(bounded(target, {times[0], times[1], times[2]}));
  machine.target = target;
  machine.threads = ThreadPool::instance().size();
  machine.bandwidth = memory_bandwidth(machine.threads);
  return machine;
}

MachineModel machine_model() {
  static std::mutex mutex;
  static std::map<std::pair<std::string, size_t>, MachineModel> known;
  std::lock_guard lock(mutex);
  const std::pair key(std::string(active_target().name),
                      ThreadPool::instance().size());
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  std::optional<MachineModel> machine = stored_machine(key.first, key.second);
  if (!machine) {
    machine = measure_machine();
    machine->file = store_machine(*machine);
  }
  return known.emplace(key, *std::move(machine)).first->second;
}

}  // namespace mlx_entropy
