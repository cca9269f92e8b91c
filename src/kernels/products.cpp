// Products with coded matrices: who multiplies which tiles with what.
#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
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
std::vector<TileGroup> split_tiles(const MatrixHeader& header, uint32_t first,
                                   uint32_t tiles, size_t sharers) {
  const size_t threads = ceil_div(ThreadPool::instance().size(), sharers);
  // Only states of rANS need the company of other tiles.
  const uint32_t together =
      header.coder == Coder::kTree ? 1 : active_target().max_streams;
  const size_t groups = std::min<size_t>(
      tiles, std::max<size_t>(ceil_div(tiles, together), threads));
  std::vector<TileGroup> split;
  for (size_t i = 0; i < groups; ++i) {
    const auto begin = static_cast<uint32_t>(i * tiles / groups);
    const auto end = static_cast<uint32_t>((i + 1) * tiles / groups);
    split.push_back({first + begin, end - begin});
  }
  return split;
}

// Calls visit(row) for rows of `width` floats, on several threads if that is
// worth waking them.
template <class Visit>
void for_rows(size_t rows, size_t width, const Visit& visit) {
  constexpr size_t kTaskFloats = 32 * 1024;
  const size_t tasks = std::min(rows, ceil_div(rows * width, kTaskFloats));
  ThreadPool::instance().run(tasks, [&](size_t task) {
    for (size_t row = task * rows / tasks; row < (task + 1) * rows / tasks;
         ++row) {
      visit(row);
    }
  });
}

void run(const ProductArgs& args, TileGroup group) {
  const KernelTable& target = args.activations != nullptr
                                  ? args.activations->target()
                                  : active_target();
  target.product(args, group.first, group.count, Scratch::local());
}

// Arguments of a product, with the copy of x that kernels read: integers for
// codes, else float32 with rows padded to whole vectors.
class Product {
 public:
  Product(const PreparedMatrix& matrix, size_t batch) {
    const MatrixHeader& header = matrix.header();
    args_.matrix = &matrix;
    args_.batch = batch;
    if (header.scheme == Scheme::kAffine) {
      activations_.emplace(batch, header.cols, header.group_size);
      args_.activations = &*activations_;
    } else {
      args_.x_stride = ceil_div(header.cols, kVector) * kVector;
      x_.resize(batch * args_.x_stride, 0.0f);
      args_.x = x_.data();
    }
  }

  // Row `to` of this product's x is row `from` of an array. Safe from several
  // threads for different rows.
  void set_row(size_t to, ConstFloatArray x, size_t from) {
    const size_t cols = args_.matrix->header().cols;
    if (activations_) {
      activations_->set_row(to, x, from * cols);
    } else {
      copy_to_float(x, from * cols, cols, &x_[to * args_.x_stride]);
    }
  }

  // After the last row.
  void seal() {
    if (activations_) activations_->seal();
  }

  void set_output(float* y, size_t y_stride, uint32_t first_row = 0) {
    args_.y = y;
    args_.y_stride = y_stride;
    args_.first_row = first_row;
  }

  void run(TileGroup group) const { mlx_entropy::run(args_, group); }

 private:
  std::optional<Activations> activations_;
  std::vector<float> x_;
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
  for_rows(batch, header.cols, [&](size_t b) { product.set_row(b, x, b); });
  product.seal();
  product.set_output(
      result.empty() ? static_cast<float*>(y.data) : result.data(),
      header.rows);
  const std::vector<TileGroup> groups = split_tiles(header, 0, header.tiles, 1);
  ThreadPool::instance().run(groups.size(),
                             [&](size_t group) { product.run(groups[group]); });
  if (result.empty()) return;
  for_rows(batch, header.rows, [&](size_t b) {
    copy_from_float(&result[b * header.rows], header.rows, y, b * header.rows);
  });
}

void multiply_shared(std::span<const PreparedMatrix* const> matrices,
                     const float* x, size_t batch, size_t x_stride,
                     std::span<float* const> y) {
  if (batch == 0) return;
  // One copy of x as integers for each group size that occurs.
  std::map<uint32_t, Activations> activations;
  for (const PreparedMatrix* matrix : matrices) {
    const MatrixHeader& header = matrix->header();
    if (header.scheme == Scheme::kAffine) {
      activations.try_emplace(header.group_size, batch, header.cols,
                              header.group_size);
    }
  }
  for (auto& item : activations) {
    Activations& integers = item.second;
    for_rows(batch, integers.cols(), [&](size_t b) {
      integers.set_row(b, {FloatType::kFloat32, x}, b * x_stride);
    });
    integers.seal();
  }
  std::vector<ProductArgs> products(matrices.size());
  std::vector<std::pair<const ProductArgs*, TileGroup>> tasks;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const MatrixHeader& header = matrices[i]->header();
    products[i].matrix = matrices[i];
    products[i].batch = batch;
    products[i].x = x;
    products[i].x_stride = x_stride;
    if (header.scheme == Scheme::kAffine) {
      products[i].activations = &activations.at(header.group_size);
    }
    products[i].y = y[i];
    products[i].y_stride = header.rows;
    for (const TileGroup& group :
         split_tiles(header, 0, header.tiles, matrices.size())) {
      tasks.emplace_back(&products[i], group);
    }
  }
  ThreadPool::instance().run(tasks.size(), [&](size_t task) {
    run(*tasks[task].first, tasks[task].second);
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
    product->seal();
    product->set_output(&result[begin * block_rows], block_rows, first_row);
    const uint32_t first_tile = first_row / header.tile_rows;
    const auto tiles =
        static_cast<uint32_t>(ceil_div(block_rows, header.tile_rows));
    for (const TileGroup& group :
         split_tiles(header, first_tile, tiles, starts.size() - 1)) {
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
