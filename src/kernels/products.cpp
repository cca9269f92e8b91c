// Products with coded matrices: who multiplies which tiles with what.
#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "base/bits.h"
#include "base/thread_pool.h"
#include "kernels/float_copy.h"
#include "kernels/kernels.h"
#include "kernels/matrix_ops.h"
#include "kernels/runs.h"

namespace mlx_entropy {
namespace {

constexpr size_t kVector = 16;  // widest target, in floats

struct TileGroup {
  uint32_t first;
  uint32_t count;
};

// Groups of tiles as equal as possible. `sharers` ranges like this one are
// worked on together, so that all of them make enough groups for all threads.
std::vector<TileGroup> split_tiles(uint32_t first, uint32_t tiles,
                                   size_t sharers) {
  const size_t threads = ceil_div(ThreadPool::instance().size(), sharers);
  const size_t groups = std::min<size_t>(
      tiles,
      std::max<size_t>(ceil_div(tiles, active_target().max_streams), threads));
  std::vector<TileGroup> split;
  for (size_t i = 0; i < groups; ++i) {
    const auto begin = static_cast<uint32_t>(i * tiles / groups);
    const auto end = static_cast<uint32_t>((i + 1) * tiles / groups);
    split.push_back({first + begin, end - begin});
  }
  return split;
}

// Arguments of a product, with the copy of x that kernels read: float32, rows
// padded to whole vectors.
class Product {
 public:
  Product(const PreparedMatrix& matrix, size_t batch)
      : stride_(ceil_div(matrix.header().cols, kVector) * kVector),
        x_(batch * stride_, 0.0f) {
    args_.matrix = &matrix;
    args_.batch = batch;
    args_.x = x_.data();
    args_.x_stride = stride_;
  }

  // Row `to` of this product's x is row `from` of an array.
  void set_row(size_t to, ConstFloatArray x, size_t from) {
    const MatrixHeader& header = args_.matrix->header();
    float* const row = &x_[to * stride_];
    copy_to_float(x, from * header.cols, header.cols, row);
    if (header.scheme != Scheme::kAffine || args_.batch > 1) return;
    sums_.resize(header.cols / header.group_size);
    for (size_t g = 0; g < sums_.size(); ++g) {
      const float* const group = row + g * header.group_size;
      sums_[g] = std::accumulate(group, group + header.group_size, 0.0f);
    }
    args_.x_group_sums = sums_.data();
  }

  void set_output(float* y, size_t y_stride, uint32_t first_row = 0) {
    args_.y = y;
    args_.y_stride = y_stride;
    args_.first_row = first_row;
  }

  void run(TileGroup group) const {
    active_target().product(args_, group.first, group.count, Scratch::local());
  }

 private:
  size_t stride_;
  std::vector<float> x_;
  std::vector<float> sums_;
  ProductArgs args_;
};

}  // namespace

void multiply(const PreparedMatrix& matrix, ConstFloatArray x, size_t batch,
              FloatArray y) {
  const MatrixHeader& header = matrix.header();
  if (batch == 0) return;
  std::vector<float> result;
  if (y.type != FloatType::kFloat32) result.resize(batch * header.rows);
  Product product(matrix, batch);
  for (size_t b = 0; b < batch; ++b) product.set_row(b, x, b);
  product.set_output(
      result.empty() ? static_cast<float*>(y.data) : result.data(),
      header.rows);
  const std::vector<TileGroup> groups = split_tiles(0, header.tiles, 1);
  ThreadPool::instance().run(groups.size(),
                             [&](size_t group) { product.run(groups[group]); });
  if (!result.empty()) copy_from_float(result.data(), result.size(), y, 0);
}

void multiply_shared(std::span<const PreparedMatrix* const> matrices,
                     const float* x, size_t batch, size_t x_stride,
                     std::span<float* const> y) {
  if (batch == 0) return;
  std::vector<ProductArgs> products(matrices.size());
  std::vector<std::vector<float>> sums(matrices.size());
  std::vector<std::pair<const ProductArgs*, TileGroup>> tasks;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const MatrixHeader& header = matrices[i]->header();
    if (header.scheme == Scheme::kAffine && batch == 1) {
      for (size_t k = 0; k < header.cols; k += header.group_size) {
        sums[i].push_back(
            std::accumulate(x + k, x + k + header.group_size, 0.0f));
      }
    }
    products[i] = {matrices[i],    batch, x,           x_stride,
                   sums[i].data(), y[i],  header.rows, 0};
    for (const TileGroup& group :
         split_tiles(0, header.tiles, matrices.size())) {
      tasks.emplace_back(&products[i], group);
    }
  }
  ThreadPool::instance().run(tasks.size(), [&](size_t task) {
    const auto& [args, group] = tasks[task];
    active_target().product(*args, group.first, group.count, Scratch::local());
  });
}

bool rows_start_tiles(const MatrixHeader& header, uint32_t block_rows) {
  return block_rows > 0 && header.rows % block_rows == 0 &&
         (block_rows % header.tile_rows == 0 || header.rows == block_rows);
}

void multiply_blocks(const PreparedMatrix& matrix, uint32_t block_rows,
                     std::span<const uint32_t> blocks, ConstFloatArray x,
                     FloatArray y) {
  const MatrixHeader& header = matrix.header();
  // Rows of x by block, so that a block is decoded once for all of its rows.
  std::vector<size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return blocks[a] < blocks[b]; });
  std::vector<float> result(blocks.size() * block_rows);
  std::vector<std::unique_ptr<Product>> products;
  std::vector<std::pair<const Product*, TileGroup>> tasks;
  std::vector<size_t> starts =
      run_starts(order.size(), [&](size_t i) { return blocks[order[i]]; });
  for (size_t run = 0; run + 1 < starts.size(); ++run) {
    const size_t begin = starts[run];
    const size_t batch = starts[run + 1] - begin;
    const uint32_t first_row = blocks[order[begin]] * block_rows;
    auto product = std::make_unique<Product>(matrix, batch);
    for (size_t b = 0; b < batch; ++b) product->set_row(b, x, order[begin + b]);
    product->set_output(&result[begin * block_rows], block_rows, first_row);
    const uint32_t first_tile = first_row / header.tile_rows;
    const auto tiles =
        static_cast<uint32_t>(ceil_div(block_rows, header.tile_rows));
    for (const TileGroup& group :
         split_tiles(first_tile, tiles, starts.size() - 1)) {
      tasks.emplace_back(product.get(), group);
    }
    products.push_back(std::move(product));
  }
  ThreadPool::instance().run(tasks.size(), [&](size_t task) {
    tasks[task].first->run(tasks[task].second);
  });
  for (size_t i = 0; i < order.size(); ++i) {
    copy_from_float(&result[i * block_rows], block_rows, y,
                    order[i] * block_rows);
  }
}

}  // namespace mlx_entropy
