#include "kernels/activations.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "kernels/float_copy.h"
#include "kernels/kernels.h"

namespace mlx_entropy {
namespace {

// Where all of a row is smaller, the product with a scale of W could vanish.
constexpr float kTiny = 1e-25f;

}  // namespace

Activations::Activations(size_t batch, size_t cols, size_t group_size)
    : target_(&active_target()),
      batch_(batch),
      cols_(cols),
      group_size_(group_size),
      groups_(cols / group_size),
      values_(std::make_unique_for_overwrite<uint8_t[]>(batch * row_bytes())),
      scales_(std::make_unique_for_overwrite<float[]>(batch * groups_)),
      sums_(std::make_unique_for_overwrite<float[]>(batch * groups_)),
      sources_(std::make_unique_for_overwrite<Source[]>(batch)) {}

void Activations::set_row(size_t b, ConstFloatArray x, size_t first) {
  sources_[b] = {x, first};
  const float* row = static_cast<const float*>(x.data) + first;
  if (x.type != FloatType::kFloat32) {
    float* const floats = Scratch::local().get<float>(Scratch::kWords, cols_);
    copy_to_float(x, first, cols_, floats);
    row = floats;
  }
  std::vector<Outlier> found;
  Outliers outliers(b, &found);
  float* const scales = scales_.get() + b * groups_;
  float* const sums = sums_.get() + b * groups_;
  const float largest = target_->quantize_row(row, cols_, group_size_,
                                              values_.get() + b * row_bytes(),
                                              scales, sums, outliers);
  if (largest < kTiny && largest > 0) {
    found.clear();
    for (size_t k = 0; k < cols_; ++k) {
      if (row[k] != 0) outliers.add(k, row[k]);
    }
    std::fill_n(scales, groups_, 0.0f);
    std::fill_n(sums, groups_, 0.0f);
  }
  if (found.empty()) return;
  std::lock_guard lock(mutex_);
  outliers_.insert(outliers_.end(), found.begin(), found.end());
}

void Activations::seal() {
  std::sort(outliers_.begin(), outliers_.end(),
            [](const Outlier& a, const Outlier& b) {
              return std::tie(a.column, a.row) < std::tie(b.column, b.row);
            });
}

bool Activations::floats(size_t b, float* out) const {
  copy_to_float(sources_[b].x, sources_[b].first, cols_, out);
  return std::none_of(out, out + cols_, [](float x) { return std::isnan(x); });
}

}  // namespace mlx_entropy
