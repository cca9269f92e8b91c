#include "convert/codec_choice.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <random>
#include <utility>

#include "base/bandwidth.h"
#include "base/thread_pool.h"
#include "codec/tree/model.h"
#include "convert/plane_plan.h"
#include "kernels/kernels.h"

namespace mlx_entropy {
namespace {

// A form has to beat the stored one by this much to be worth its coding, and
// among equally fast ones the smallest is best.
constexpr double kWorthwhile = 0.95;
constexpr double kEquallyFast = 1.03;

// rans32 and planes that need raw bits decode this much more slowly.
constexpr double kSlowRans = 2.5;

constexpr std::optional<double> kPassCosts[] = {kFlatPassCost, 0.25, 0.1,
                                                std::nullopt};

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

  std::vector<uint32_t> packed;
  std::vector<uint16_t> scales, biases;
};

// Nanoseconds a weight of a product with one row, on this thread alone.
double product_time(const std::vector<uint8_t>& coded) {
  constexpr int kRepeats = 12;
  const auto matrix =
      std::move(PreparedMatrix::make(coded.data(), coded.size()).value());
  const MatrixHeader& header = matrix->header();
  Activations x(1, header.cols, header.group_size);
  const std::vector<float> ones(header.cols, 1.0f);
  x.set_row(0, {FloatType::kFloat32, ones.data()}, 0);
  x.seal();
  std::vector<float> y(header.rows);
  ProductArgs args;
  args.matrix = matrix.get();
  args.batch = 1;
  args.activations = &x;
  args.y = y.data();
  args.y_stride = header.rows;
  const KernelTable& target = x.target();
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const auto started = std::chrono::steady_clock::now();
    for (uint32_t tile = 0; tile < header.tiles; tile += target.max_streams) {
      target.product(args, tile,
                     std::min(target.max_streams, header.tiles - tile),
                     Scratch::local());
    }
    const std::chrono::duration<double, std::nano> elapsed =
        std::chrono::steady_clock::now() - started;
    if (repeat == 0 || elapsed.count() < best) best = elapsed.count();
  }
  return best / Probe::kWeights;
}

MachineModel measure() {
  constexpr size_t kBandwidthBytes = size_t{64} << 20;
  constexpr size_t kBandwidthPasses = 3;
  MachineModel machine;
  machine.target = active_target().name;
  machine.threads = ThreadPool::instance().size();
  const Probe probe;
  machine.rans = product_time(probe.encode(Codec::kRans, std::nullopt));
  // Two trees give the line. Their merges come from the same histogram.
  std::vector<uint64_t> counts(16, 0);
  for (uint32_t word : probe.packed) {
    for (int i = 0; i < 8; ++i) ++counts[word >> (4 * i) & 15];
  }
  const double flat = product_time(probe.encode(Codec::kTree, kFlatPassCost));
  const double compact = product_time(probe.encode(Codec::kTree, std::nullopt));
  const double flat_merges = choose_tree(counts, kFlatPassCost).merges;
  const double compact_merges = choose_tree(counts, std::nullopt).merges;
  machine.tree_merge =
      std::max(0.0, compact - flat) / (compact_merges - flat_merges);
  machine.tree = std::max(0.0, flat - machine.tree_merge * flat_merges);
  const std::vector<double> rates =
      read_bandwidth(kBandwidthBytes, kBandwidthPasses);
  machine.bandwidth = *std::max_element(rates.begin(), rates.end()) / 1e9;
  return machine;
}

double predict(const MachineModel& machine, double decode, double bits) {
  return std::max(decode / static_cast<double>(machine.threads),
                  bits / 8 / machine.bandwidth);
}

bool needs_raw_bits(const Plane& plane) {
  return plane.raw_bits > 0 || !plane.palette.empty();
}

CodecChoice stored_form(const PreparedMatrix& matrix,
                        const MachineModel& machine) {
  const MatrixHeader& header = matrix.header();
  CodecChoice choice;
  choice.codec = header.coder == Coder::kTree ? Codec::kTree : Codec::kRans;
  choice.bits = 8.0 * static_cast<double>(matrix.container().size()) /
                (static_cast<double>(header.rows) * header.cols);
  double decode = machine.rans;
  if (header.coder == Coder::kTree) {
    decode = machine.tree;  // a lower bound: its merges are not counted
  } else if (header.coder == Coder::kRans32 ||
             needs_raw_bits(header.planes.back())) {
    decode *= kSlowRans;
  }
  choice.time = predict(machine, decode, choice.bits);
  return choice;
}

}  // namespace

MachineModel machine_model() {
  static std::mutex mutex;
  static std::map<std::pair<std::string, size_t>, MachineModel> known;
  std::lock_guard lock(mutex);
  const std::pair key(std::string(active_target().name),
                      ThreadPool::instance().size());
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  return known.emplace(key, measure()).first->second;
}

std::vector<CodecChoice> rank_codecs(const Transcoder& transcoder,
                                     const MachineModel& machine) {
  const PreparedMatrix& matrix = transcoder.matrix();
  const MatrixHeader& header = matrix.header();
  const CodecChoice stored = stored_form(matrix, machine);
  if (header.scheme != Scheme::kAffine || header.coder == Coder::kTree) {
    return {stored};
  }
  const std::vector<PlaneHistogram>& histograms = transcoder.histograms();
  const double weights = static_cast<double>(header.rows) * header.cols;
  double side_bits = 0;
  for (size_t p = 0; p < matrix.weights_plane(); ++p) {
    side_bits +=
        plan_plane(header.planes[p].kind, histograms[p], Coder::kTree).bits;
  }
  std::vector<CodecChoice> choices;
  for (const std::optional<double>& pass_cost : kPassCosts) {
    const PlanePlan plan =
        plan_tree_plane(PlaneKind::kCodes, histograms.back(), pass_cost);
    if (!choices.empty() && choices.back().merges == plan.merges) continue;
    CodecChoice choice;
    choice.codec = Codec::kTree;
    choice.pass_cost = pass_cost;
    choice.bits = (side_bits + plan.bits) / weights;
    choice.merges = plan.merges;
    choice.time = predict(
        machine, machine.tree + machine.tree_merge * plan.merges, choice.bits);
    choices.push_back(choice);
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const CodecChoice& a, const CodecChoice& b) {
                     return a.time < b.time;
                   });
  const double fast = choices.front().time * kEquallyFast;
  const auto end_of_fast = std::find_if(
      choices.begin(), choices.end(),
      [fast](const CodecChoice& choice) { return choice.time > fast; });
  std::stable_sort(choices.begin(), end_of_fast,
                   [](const CodecChoice& a, const CodecChoice& b) {
                     return a.bits < b.bits;
                   });
  const bool stays = choices.front().time > kWorthwhile * stored.time;
  choices.insert(stays ? choices.begin() : choices.end(), stored);
  return choices;
}

}  // namespace mlx_entropy
