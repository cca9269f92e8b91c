#include "mlx/llama_ops.h"

#include <string>
#include <utility>

#include "mlx/arrays.h"
#include "mlx/llama_primitives.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "mlx/validated.h"

namespace mlx_entropy {
namespace {

constexpr const char* kOp = "llama_decoder";
constexpr size_t kProjections = 7;

// Not on a stream of the caller: this runs once, wherever it is called.
std::vector<float> to_floats(const mx::array& array) {
  if (float_type(array.dtype()) == FloatType::kNone || array.ndim() != 1) {
    fail(kOp,
         "norms, biases and frequencies must be vectors of floats, got "
         "shape " +
             to_string(array.shape()));
  }
  mx::array floats = mx::contiguous(
      mx::astype(array, mx::float32, mx::Device::cpu), false, mx::Device::cpu);
  mx::eval(floats);
  const auto* const data = floats.data<float>();
  return std::vector<float>(data, data + floats.size());
}

void check_cache(const LlamaDecoder& decoder, const mx::array& cache,
                 int offset) {
  const mx::Shape& shape = cache.shape();
  if (shape.size() != 4 || shape[0] != 1 ||
      static_cast<size_t>(shape[1]) != decoder.kv_heads() ||
      shape[2] < offset ||
      static_cast<size_t>(shape[3]) != decoder.head_dim()) {
    fail(kOp, "expected caches of shape " +
                  to_string({1, static_cast<int>(decoder.kv_heads()), offset,
                             static_cast<int>(decoder.head_dim())}) +
                  " with room, got " + to_string(shape));
  }
  if (float_type(cache.dtype()) == FloatType::kNone) {
    fail(kOp, "caches must be float32, float16 or bfloat16");
  }
}

}  // namespace

FusedLlama::FusedLlama(const std::vector<mx::array>& coded,
                       const std::vector<std::optional<mx::array>>& biases,
                       const std::vector<mx::array>& norms,
                       const mx::array& inverse_frequencies,
                       const LlamaShape& shape) {
  const size_t layers = coded.size() / kProjections;
  if (coded.empty() || coded.size() != layers * kProjections ||
      biases.size() != coded.size() || norms.size() != 2 * layers + 1) {
    fail(kOp,
         "expected 7 matrices, 7 biases and 2 norms a layer and a last "
         "norm, got " +
             std::to_string(coded.size()) + ", " +
             std::to_string(biases.size()) + " and " +
             std::to_string(norms.size()));
  }
  if (shape.heads <= 0 || shape.kv_heads <= 0 || shape.head_dim <= 0) {
    fail(kOp, "heads, kv_heads and head_dim must be positive");
  }
  mx::eval(coded);
  LlamaModel model{.layers = std::vector<LlamaLayer>(layers),
                   .norm = to_floats(norms.back()),
                   .heads = static_cast<size_t>(shape.heads),
                   .kv_heads = static_cast<size_t>(shape.kv_heads),
                   .head_dim = static_cast<size_t>(shape.head_dim),
                   .eps = shape.eps,
                   .attention_scale = shape.attention_scale,
                   .inverse_frequencies = to_floats(inverse_frequencies),
                   .rope_scale = shape.rope_scale,
                   .rope_traditional = shape.rope_traditional};
  for (size_t i = 0; i < layers; ++i) {
    LlamaLayer& layer = model.layers[i];
    layer.attention_norm = to_floats(norms[2 * i]);
    layer.mlp_norm = to_floats(norms[2 * i + 1]);
    size_t next = i * kProjections;
    for (Projection* projection : {&layer.q, &layer.k, &layer.v, &layer.o,
                                   &layer.gate, &layer.up, &layer.down}) {
      if (coded[next].dtype() != mx::uint8 || coded[next].ndim() != 1) {
        fail(kOp, "coded weights must be uint8 vectors");
      }
      auto matrix = validated(CodedBytes(coded[next]));
      if (!matrix.ok()) fail(kOp, matrix.status().message());
      projection->matrix = matrix.value();
      if (biases[next]) projection->bias = to_floats(*biases[next]);
      ++next;
    }
  }
  auto decoder = LlamaDecoder::make(std::move(model));
  if (!decoder.ok()) fail(kOp, decoder.status().message());
  decoder_ = {decoder.value().get(),
              [decoder = decoder.value(), coded](const LlamaDecoder*) {}};
}

std::tuple<mx::array, Caches, Caches> FusedLlama::step(
    const mx::array& x, const Caches& keys, const Caches& values, int offset,
    int capacity, mx::StreamOrDevice s) const {
  if (x.ndim() != 3 || x.shape(0) != 1 ||
      static_cast<size_t>(x.shape(2)) != decoder_->hidden()) {
    fail(kOp, "expected x of shape " +
                  to_string({1, -1, static_cast<int>(decoder_->hidden())}) +
                  ", got " + to_string(x.shape()));
  }
  if (float_type(x.dtype()) == FloatType::kNone) {
    fail(kOp, "x must be float32, float16 or bfloat16");
  }
  const size_t layers = decoder_->layers();
  if (keys.size() != values.size() ||
      (!keys.empty() && keys.size() != layers)) {
    fail(kOp, "expected keys and values of " + std::to_string(layers) +
                  " layers, got " + std::to_string(keys.size()) + " and " +
                  std::to_string(values.size()));
  }
  if (offset < 0 || capacity - x.shape(1) < offset ||
      (keys.empty() && offset > 0)) {
    fail(kOp, "no room for " + std::to_string(x.shape(1)) +
                  " tokens at position " + std::to_string(offset) + " of " +
                  std::to_string(capacity));
  }
  const mx::Shape cache_shape{1, static_cast<int>(decoder_->kv_heads()),
                              capacity, static_cast<int>(decoder_->head_dim())};
  std::vector<mx::array> inputs{x};
  std::vector<mx::Shape> shapes{x.shape()};
  std::vector<mx::Dtype> types{x.dtype()};
  for (size_t i = 0; i < layers; ++i) {
    mx::Dtype type = x.dtype();
    if (!keys.empty()) {
      type = keys[i].dtype();
      check_cache(*decoder_, keys[i], offset);
      check_cache(*decoder_, values[i], offset);
      if (values[i].dtype() != type) {
        fail(kOp, "keys and values must be of the same type");
      }
      inputs.push_back(keys[i]);
      inputs.push_back(values[i]);
    }
    shapes.insert(shapes.end(), 2, cache_shape);
    types.insert(types.end(), 2, type);
  }
  auto outputs = mx::array::make_arrays(
      std::move(shapes), types,
      std::make_shared<LlamaStep>(mx::to_stream(s, mx::Device::cpu), decoder_,
                                  offset),
      inputs);
  Caches new_keys, new_values;
  for (size_t i = 0; i < layers; ++i) {
    new_keys.push_back(outputs[1 + 2 * i]);
    new_values.push_back(outputs[2 + 2 * i]);
  }
  return {outputs[0], std::move(new_keys), std::move(new_values)};
}

}  // namespace mlx_entropy
