#include "convert/codec_choice.h"

#include <algorithm>
#include <array>
#include <optional>

#include "convert/plane_plan.h"

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
