#include "model/llama_decoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <new>
#include <string>
#include <utility>

#include "base/bits.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/scratch.h"

namespace mlx_entropy {
namespace {

// Products want rows of whole vectors, zero beyond the columns.
constexpr size_t kVector = 16;
// Tokens that go through a layer together. More would need more memory and
// would not save time: a product of this many rows is bound by arithmetic.
constexpr size_t kChunk = 512;
// Below this many multiplications a loop is not worth waking threads for.
constexpr size_t kSerialWork = 1 << 18;
// Query rows of an attention task: enough to pay for turning a block of keys,
// few enough for their scores to stay in the second-level cache.
constexpr size_t kQueryRows = 48;

size_t padded(size_t n) { return ceil_div(n, kVector) * kVector; }

const TransformerKernels& kernels() { return *active_target().transformer; }

// Rows of float32, each padded with zeros to whole vectors. 64-byte aligned.
class Rows {
 public:
  Rows(size_t rows, size_t cols)
      : stride_(padded(cols)),
        data_(static_cast<float*>(
            ::operator new(rows* stride_ * sizeof(float), kAlignment))) {
    if (stride_ == cols) return;
    for (size_t r = 0; r < rows; ++r) {
      std::fill(row(r) + cols, row(r) + stride_, 0.0f);
    }
  }
  ~Rows() { ::operator delete(data_, kAlignment); }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  size_t stride() const { return stride_; }
  float* data() const { return data_; }
  float* row(size_t r) const { return data_ + r * stride_; }

 private:
  static constexpr std::align_val_t kAlignment{64};

  size_t stride_;
  float* data_;
};

// Calls body(row) for each row, on all threads if there is enough to do.
template <class Body>
void for_rows(size_t rows, size_t work_per_row, const Body& body) {
  if (rows * work_per_row < kSerialWork) {
    for (size_t row = 0; row < rows; ++row) body(row);
    return;
  }
  constexpr size_t kRowsPerTask = 8;
  ThreadPool::instance().run(ceil_div(rows, kRowsPerTask), [&](size_t task) {
    const size_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (size_t row = task * kRowsPerTask; row < end; ++row) body(row);
  });
}

void add_bias(const std::vector<float>& bias, float* row) {
  if (!bias.empty()) kernels().add(bias.data(), bias.size(), row);
}

std::string shape(size_t rows, size_t cols) {
  return std::string("(")
      .append(std::to_string(rows))
      .append(", ")
      .append(std::to_string(cols))
      .append(")");
}

Status check(const std::string& name, const Projection& projection, size_t rows,
             size_t cols) {
  const MatrixHeader& header = projection.matrix->header();
  if (header.scheme == Scheme::kSymbols) {
    return Status::error(name + " holds symbols, not weights");
  }
  if (header.rows != rows || header.cols != cols) {
    return Status::error(name + ": expected a coded matrix of shape " +
                         shape(rows, cols) + ", got " +
                         shape(header.rows, header.cols));
  }
  if (!projection.bias.empty() && projection.bias.size() != rows) {
    return Status::error(name + ": expected a bias of " + std::to_string(rows) +
                         " elements, got " +
                         std::to_string(projection.bias.size()));
  }
  return {};
}

}  // namespace

// What a chunk of tokens needs; allocated once for a call.
struct LlamaDecoder::Buffers {
  Buffers(const LlamaModel& model, size_t tokens)
      : hidden(model.norm.size()),
        ffn(model.layers[0].gate.matrix->header().rows),
        q_dim(model.heads * model.head_dim),
        kv_dim(model.kv_heads * model.head_dim),
        pairs(model.inverse_frequencies.size()),
        residual(tokens, hidden),
        normed(tokens, hidden),
        // Products write rows without padding.
        queries(1, tokens * q_dim),
        keys(1, tokens * kv_dim),
        values(1, tokens * kv_dim),
        attended(tokens, q_dim),
        branch(1, tokens * hidden),
        gate(1, tokens * ffn),
        up(1, tokens * ffn),
        activated(tokens, ffn),
        cosines(1, tokens * pairs),
        sines(1, tokens * pairs) {}

  size_t hidden, ffn, q_dim, kv_dim, pairs;
  Rows residual, normed, queries, keys, values, attended, branch, gate, up,
      activated, cosines, sines;
};

Result<std::shared_ptr<const LlamaDecoder>> LlamaDecoder::make(
    LlamaModel model) {
  const size_t hidden = model.norm.size();
  if (model.layers.empty() || hidden == 0) {
    return Status::error("a model has layers and a norm");
  }
  if (model.kv_heads == 0 || model.head_dim == 0 ||
      model.heads % model.kv_heads != 0) {
    return Status::error("heads must be a multiple of kv_heads, got " +
                         std::to_string(model.heads) + " and " +
                         std::to_string(model.kv_heads));
  }
  if (2 * model.inverse_frequencies.size() > model.head_dim) {
    return Status::error("more frequencies than pairs in a head");
  }
  const size_t q_dim = model.heads * model.head_dim;
  const size_t kv_dim = model.kv_heads * model.head_dim;
  const size_t ffn = model.layers[0].gate.matrix->header().rows;
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const LlamaLayer& layer = model.layers[i];
    const std::string prefix = "layer " + std::to_string(i) + " ";
    if (layer.attention_norm.size() != hidden ||
        layer.mlp_norm.size() != hidden) {
      return Status::error(prefix + "norm: expected " + std::to_string(hidden) +
                           " elements");
    }
    for (const Status& status :
         {check(prefix + "q", layer.q, q_dim, hidden),
          check(prefix + "k", layer.k, kv_dim, hidden),
          check(prefix + "v", layer.v, kv_dim, hidden),
          check(prefix + "o", layer.o, hidden, q_dim),
          check(prefix + "gate", layer.gate, ffn, hidden),
          check(prefix + "up", layer.up, ffn, hidden),
          check(prefix + "down", layer.down, hidden, ffn)}) {
      if (!status.ok()) return status;
    }
  }
  return std::shared_ptr<const LlamaDecoder>(
      new LlamaDecoder(std::move(model)));
}

void LlamaDecoder::run(ConstFloatArray x, size_t tokens, size_t offset,
                       std::span<const LayerCache> caches,
                       FloatArray out) const {
  if (tokens == 0) return;
  Buffers buffers(model_, std::min(tokens, kChunk));
  const size_t row_bytes =
      buffers.hidden * static_cast<size_t>(bit_width(x.type)) / 8;
  const size_t out_bytes =
      buffers.hidden * static_cast<size_t>(bit_width(out.type)) / 8;
  for (size_t first = 0; first < tokens; first += kChunk) {
    const size_t count = std::min(kChunk, tokens - first);
    for (size_t t = 0; t < count; ++t) {
      kernels().load_floats(
          x.type, static_cast<const uint8_t*>(x.data) + (first + t) * row_bytes,
          buffers.hidden, buffers.residual.row(t));
    }
    run_chunk(buffers, count, offset + first, caches);
    for (size_t t = 0; t < count; ++t) {
      kernels().store_floats(
          out.type, buffers.normed.row(t), buffers.hidden,
          static_cast<uint8_t*>(out.data) + (first + t) * out_bytes);
    }
  }
}

// The residual stream of a chunk through all layers; leaves the output of the
// last norm in `normed`.
void LlamaDecoder::run_chunk(Buffers& buffers, size_t tokens, size_t offset,
                             std::span<const LayerCache> caches) const {
  // Angles in float32 as MLX has them, so that both round them alike.
  for_rows(tokens, 16 * buffers.pairs, [&](size_t t) {
    const float position = static_cast<float>(offset + t) * model_.rope_scale;
    for (size_t i = 0; i < buffers.pairs; ++i) {
      const float angle = position * model_.inverse_frequencies[i];
      buffers.cosines.data()[t * buffers.pairs + i] = std::cos(angle);
      buffers.sines.data()[t * buffers.pairs + i] = std::sin(angle);
    }
  });
  const auto norm = [&](const std::vector<float>& weight) {
    for_rows(tokens, 2 * buffers.hidden, [&](size_t t) {
      kernels().rms_norm(buffers.residual.row(t), weight.data(), buffers.hidden,
                         model_.eps, buffers.normed.row(t));
    });
  };
  const auto add_branch_and_norm = [&](const Projection& branch,
                                       const std::vector<float>& weight) {
    for_rows(tokens, 3 * buffers.hidden, [&](size_t t) {
      float* const residual = buffers.residual.row(t);
      kernels().add(buffers.branch.data() + t * buffers.hidden, buffers.hidden,
                    residual);
      add_bias(branch.bias, residual);
      kernels().rms_norm(residual, weight.data(), buffers.hidden, model_.eps,
                         buffers.normed.row(t));
    });
  };
  norm(model_.layers[0].attention_norm);
  for (size_t i = 0; i < model_.layers.size(); ++i) {
    const LlamaLayer& layer = model_.layers[i];
    attend(buffers, layer, tokens, offset, caches[i]);
    add_branch_and_norm(layer.o, layer.mlp_norm);
    feed_forward(buffers, layer, tokens);
    const bool last = i + 1 == model_.layers.size();
    add_branch_and_norm(
        layer.down, last ? model_.norm : model_.layers[i + 1].attention_norm);
  }
}

void LlamaDecoder::attend(Buffers& buffers, const LlamaLayer& layer,
                          size_t tokens, size_t offset,
                          const LayerCache& cache) const {
  const size_t dim = model_.head_dim;
  multiply_shared(std::array{layer.q.matrix.get(), layer.k.matrix.get(),
                             layer.v.matrix.get()},
                  buffers.normed.data(), tokens, buffers.normed.stride(),
                  std::array{buffers.queries.data(), buffers.keys.data(),
                             buffers.values.data()});

  const auto store = [&](FloatArray array, const float* row, size_t position) {
    const size_t item = static_cast<size_t>(bit_width(array.type)) / 8;
    for (size_t h = 0; h < model_.kv_heads; ++h) {
      kernels().store_floats(array.type, row + h * dim, dim,
                             static_cast<uint8_t*>(array.data) +
                                 (h * cache.capacity + position) * dim * item);
    }
  };
  for_rows(tokens, 2 * (buffers.q_dim + 2 * buffers.kv_dim), [&](size_t t) {
    float* const query = buffers.queries.data() + t * buffers.q_dim;
    float* const key = buffers.keys.data() + t * buffers.kv_dim;
    float* const value = buffers.values.data() + t * buffers.kv_dim;
    add_bias(layer.q.bias, query);
    add_bias(layer.k.bias, key);
    add_bias(layer.v.bias, value);
    const Rotation rotation{buffers.cosines.data() + t * buffers.pairs,
                            buffers.sines.data() + t * buffers.pairs,
                            buffers.pairs, model_.rope_traditional};
    kernels().rotate(rotation, model_.heads, dim, query);
    kernels().rotate(rotation, model_.kv_heads, dim, key);
    store(cache.keys, key, offset + t);
    store(cache.values, value, offset + t);
  });

  const AttentionArgs args{.queries = buffers.queries.data(),
                           .keys = cache.keys.data,
                           .values = cache.values.data,
                           .type = cache.keys.type,
                           .heads = model_.heads,
                           .kv_heads = model_.kv_heads,
                           .head_dim = dim,
                           .capacity = cache.capacity,
                           .offset = offset,
                           .scale = model_.attention_scale,
                           .out = buffers.attended.data(),
                           .out_stride = buffers.attended.stride()};
  const size_t repeats = model_.heads / model_.kv_heads;
  const size_t count = std::max<size_t>(1, kQueryRows / repeats);
  const size_t parts = ceil_div(tokens, count);
  const size_t tasks = parts * model_.kv_heads;
  const auto attend_part = [&](size_t task) {
    // The last tokens see the most keys, so they go first.
    const size_t first = (parts - 1 - task / model_.kv_heads) * count;
    kernels().attend(args, task % model_.kv_heads, first,
                     std::min(count, tokens - first), Scratch::local());
  };
  if (tokens * (offset + tokens) * buffers.q_dim * 2 < kSerialWork) {
    for (size_t task = 0; task < tasks; ++task) attend_part(task);
  } else {
    ThreadPool::instance().run(tasks, attend_part);
  }
  multiply_shared(std::array{layer.o.matrix.get()}, buffers.attended.data(),
                  tokens, buffers.attended.stride(),
                  std::array{buffers.branch.data()});
}

void LlamaDecoder::feed_forward(Buffers& buffers, const LlamaLayer& layer,
                                size_t tokens) const {
  multiply_shared(std::array{layer.gate.matrix.get(), layer.up.matrix.get()},
                  buffers.normed.data(), tokens, buffers.normed.stride(),
                  std::array{buffers.gate.data(), buffers.up.data()});
  for_rows(tokens, 8 * buffers.ffn, [&](size_t t) {
    float* const gate = buffers.gate.data() + t * buffers.ffn;
    float* const up = buffers.up.data() + t * buffers.ffn;
    add_bias(layer.gate.bias, gate);
    add_bias(layer.up.bias, up);
    kernels().silu_multiply(gate, up, buffers.ffn, buffers.activated.row(t));
  });
  multiply_shared(std::array{layer.down.matrix.get()}, buffers.activated.data(),
                  tokens, buffers.activated.stride(),
                  std::array{buffers.branch.data()});
}

}  // namespace mlx_entropy
