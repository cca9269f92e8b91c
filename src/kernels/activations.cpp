#include "kernels/activations.h"

#include "kernels/kernels.h"

namespace mlx_entropy {

Activations::Activations(size_t batch, size_t cols, size_t group_size)
    : target_(&active_target()),
      batch_(batch),
      cols_(cols),
      group_size_(group_size),
      groups_(cols / group_size),
      values_(std::make_unique_for_overwrite<uint8_t[]>(batch * row_bytes())),
      scales_(std::make_unique_for_overwrite<float[]>(batch * groups_)),
      sums_(std::make_unique_for_overwrite<float[]>(batch * groups_)) {}

void Activations::set_row(size_t b, const float* x) {
  target_->quantize_row(x, cols_, group_size_, values_.get() + b * row_bytes(),
                        scales_.get() + b * groups_, sums_.get() + b * groups_);
}

}  // namespace mlx_entropy
