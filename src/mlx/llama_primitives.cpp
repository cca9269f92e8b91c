#include "mlx/llama_primitives.h"

#include <cstring>
#include <optional>
#include <stdexcept>

#include "mlx/arrays.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/kv_blocks.h"

namespace mlx_entropy {
namespace {

// One cache, as it was and as it becomes; `in` only when it has to be copied.
struct Cache {
  std::optional<mx::array> in;
  mx::array out;
  bool in_place;
};

Cache open_cache(const mx::array* in, mx::array& out, int64_t offset,
                 int64_t tokens) {
  const bool in_place = continue_cache(in, out, offset, tokens);
  std::optional<mx::array> from;
  if (!in_place && in != nullptr) from = mx::array::unsafe_weak_copy(*in);
  return {std::move(from), mx::array::unsafe_weak_copy(out), in_place};
}

// The first `offset` positions of each head, then `tokens` that are going to
// be written, then zeros.
void fill_cache(Cache& cache, size_t offset, size_t tokens) {
  if (cache.in_place) return;
  const mx::Shape& shape = cache.out.shape();
  const size_t row = static_cast<size_t>(shape[3]) * cache.out.itemsize();
  const auto capacity = static_cast<size_t>(shape[2]);
  std::vector<uint8_t> storage;
  const uint8_t* from = nullptr;
  size_t from_head = 0;
  if (cache.in) {
    from = static_cast<const uint8_t*>(dense_data(*cache.in, &storage));
    from_head = static_cast<size_t>(cache.in->shape(2)) * row;
  }
  auto* to = cache.out.data<uint8_t>();
  for (int head = 0; head < shape[1]; ++head, to += capacity * row) {
    if (offset > 0) {
      std::memcpy(to, from + static_cast<size_t>(head) * from_head,
                  offset * row);
    }
    const size_t used = offset + tokens;
    std::memset(to + used * row, 0, (capacity - used) * row);
  }
}

}  // namespace

void LlamaStep::eval_cpu(const std::vector<mx::array>& inputs,
                         std::vector<mx::array>& outputs) {
  const mx::array& x = inputs[0];
  mx::array& out = outputs[0];
  allocate(out);
  std::vector<Cache> caches;
  caches.reserve(outputs.size() - 1);
  for (size_t i = 1; i < outputs.size(); ++i) {
    const mx::array* const in = inputs.size() > 1 ? &inputs[i] : nullptr;
    caches.push_back(open_cache(in, outputs[i], offset_, x.shape(1)));
  }
  auto& encoder = mx::cpu::get_command_encoder(stream());
  for (const mx::array& input : inputs) encoder.set_input_array(input);
  for (mx::array& output : outputs) encoder.set_output_array(output);
  // Weights, shapes and types were checked when the operation was made, and no
  // value of x can make this throw; only memory can run out.
  encoder.dispatch([decoder = decoder_, offset = static_cast<size_t>(offset_),
                    x = mx::array::unsafe_weak_copy(x),
                    out = mx::array::unsafe_weak_copy(out),
                    caches = std::move(caches)]() mutable {
    const auto tokens = static_cast<size_t>(x.shape(1));
    for (Cache& cache : caches) fill_cache(cache, offset, tokens);
    std::vector<LayerCache> layers;
    for (size_t i = 0; i < caches.size(); i += 2) {
      mx::array& keys = caches[i].out;
      mx::array& values = caches[i + 1].out;
      layers.push_back({{float_type(keys.dtype()), keys.data<void>()},
                        {float_type(values.dtype()), values.data<void>()},
                        static_cast<size_t>(keys.shape(2))});
    }
    std::vector<uint8_t> storage;
    const void* const data = dense_data(x, &storage);
    decoder->run({float_type(x.dtype()), data}, tokens, offset, layers,
                 {float_type(out.dtype()), out.data<void>()});
  });
}

void LlamaStep::eval_gpu(const std::vector<mx::array>&,
                         std::vector<mx::array>&) {
  throw std::runtime_error(
      "[llama_decoder] runs on the CPU; give it a CPU stream");
}

}  // namespace mlx_entropy
