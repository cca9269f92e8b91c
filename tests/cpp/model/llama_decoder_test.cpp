// The decoder against itself: tokens at once, in parts, one by one. What it
// computes is compared with mlx-lm's model in tests/python.
#include "model/llama_decoder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "kernels/kernels.h"
#include "support/matrices.h"

namespace mlx_entropy {
namespace {

using testing::Bytes;
using Floats = std::vector<float>;

constexpr size_t kHidden = 40, kFfn = 72, kHeads = 4, kKvHeads = 2, kDim = 10;

class Decoder : public ::testing::TestWithParam<const KernelTable*> {
 protected:
  void SetUp() override { ASSERT_TRUE(set_target(GetParam()->name).ok()); }
  void TearDown() override {
    ASSERT_TRUE(set_target(available_targets().front()->name).ok());
  }

  Floats random(size_t n) {
    std::normal_distribution<float> normal;
    Floats values(n);
    for (float& value : values) value = normal(random_);
    return values;
  }

  Projection projection(size_t rows, size_t cols, bool bias = true) {
    const auto matrix = testing::random_floats(
        static_cast<uint32_t>(random_()), static_cast<uint32_t>(rows),
        static_cast<uint32_t>(cols), FloatType::kFloat16);
    coded_.push_back(std::make_unique<Bytes>(testing::encode(matrix, 0)));
    return {validate(coded_.back()->data(), coded_.back()->size()).value(),
            bias ? random(rows) : Floats()};
  }

  LlamaModel model() {
    LlamaModel model;
    for (bool bias : {true, false}) {
      model.layers.push_back(
          {random(kHidden), projection(kHeads * kDim, kHidden, bias),
           projection(kKvHeads * kDim, kHidden, bias),
           projection(kKvHeads * kDim, kHidden, bias),
           projection(kHidden, kHeads * kDim, bias), random(kHidden),
           projection(kFfn, kHidden, bias), projection(kFfn, kHidden, bias),
           projection(kHidden, kFfn, bias)});
    }
    model.norm = random(kHidden);
    model.heads = kHeads;
    model.kv_heads = kKvHeads;
    model.head_dim = kDim;
    model.eps = 1e-5f;
    model.attention_scale = 0.3f;
    model.inverse_frequencies = {1.0f, 0.5f, 0.25f, 0.1f, 0.05f};
    return model;
  }

  std::mt19937 random_{3};
  std::vector<std::unique_ptr<Bytes>> coded_;
};

// Runs tokens in parts of these sizes.
Floats run(const LlamaDecoder& decoder, const Floats& x,
           const std::vector<size_t>& parts, FloatType type) {
  const size_t capacity = x.size() / kHidden + 3;
  const size_t cache = kKvHeads * capacity * kDim;
  std::vector<Bytes> memory(2 * decoder.layers(), Bytes(cache * 4));
  std::vector<LayerCache> caches;
  for (size_t i = 0; i < decoder.layers(); ++i) {
    caches.push_back({{type, memory[2 * i].data()},
                      {type, memory[2 * i + 1].data()},
                      capacity});
  }
  Floats out(x.size());
  size_t offset = 0;
  for (size_t tokens : parts) {
    decoder.run({FloatType::kFloat32, &x[offset * kHidden]}, tokens, offset,
                caches, {FloatType::kFloat32, &out[offset * kHidden]});
    offset += tokens;
  }
  EXPECT_EQ(offset * kHidden, x.size());
  return out;
}

double difference(const Floats& a, const Floats& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(a[i] - b[i], 2);
    norm += std::pow(b[i], 2);
  }
  return std::sqrt(error / norm);
}

TEST_P(Decoder, PartsOfAPrompt) {
  const auto decoder = LlamaDecoder::make(model());
  ASSERT_TRUE(decoder.ok()) << decoder.status().message();
  const Floats x = random(70 * kHidden);
  for (FloatType type :
       {FloatType::kFloat32, FloatType::kFloat16, FloatType::kBfloat16}) {
    const Floats whole = run(*decoder.value(), x, {70}, type);
    const double limit = type == FloatType::kFloat32 ? 1e-5 : 2e-2;
    EXPECT_LT(difference(run(*decoder.value(), x, {1, 68, 1}, type), whole),
              limit);
    EXPECT_LT(
        difference(run(*decoder.value(), x, std::vector<size_t>(70, 1), type),
                   whole),
        limit);
  }
}

// More tokens than go through a layer together.
TEST_P(Decoder, LongPrompt) {
  const auto decoder = LlamaDecoder::make(model());
  ASSERT_TRUE(decoder.ok());
  const Floats x = random(530 * kHidden);
  EXPECT_LT(
      difference(run(*decoder.value(), x, {530}, FloatType::kFloat32),
                 run(*decoder.value(), x, {7, 512, 11}, FloatType::kFloat32)),
      1e-5);
}

TEST_P(Decoder, TypesOfInputAndOutput) {
  const auto decoder = LlamaDecoder::make(model());
  ASSERT_TRUE(decoder.ok());
  const Floats x = random(5 * kHidden);
  const Floats expected = run(*decoder.value(), x, {5}, FloatType::kFloat32);
  std::vector<uint16_t> halves(x.size()), out(x.size());
  const TransformerKernels& kernels = *active_target().transformer;
  kernels.store_floats(FloatType::kFloat16, x.data(), x.size(), halves.data());
  std::vector<Bytes> memory(4, Bytes(kKvHeads * 5 * kDim * 4));
  std::vector<LayerCache> caches;
  for (size_t i = 0; i < 2; ++i) {
    caches.push_back({{FloatType::kFloat32, memory[2 * i].data()},
                      {FloatType::kFloat32, memory[2 * i + 1].data()},
                      5});
  }
  decoder.value()->run({FloatType::kFloat16, halves.data()}, 5, 0, caches,
                       {FloatType::kFloat16, out.data()});
  Floats actual(x.size());
  kernels.load_floats(FloatType::kFloat16, out.data(), x.size(), actual.data());
  EXPECT_LT(difference(actual, expected), 2e-3);
}

TEST_P(Decoder, RefusesWhatDoesNotFit) {
  const auto refused = [&](const std::function<void(LlamaModel&)>& change) {
    LlamaModel changed = model();
    change(changed);
    const auto decoder = LlamaDecoder::make(std::move(changed));
    return decoder.ok() ? "" : decoder.status().message();
  };
  EXPECT_NE(refused([](LlamaModel& m) { m.layers.clear(); }), "");
  EXPECT_NE(refused([](LlamaModel& m) { m.kv_heads = 3; }), "");
  EXPECT_NE(refused([](LlamaModel& m) { m.kv_heads = 0; }), "");
  EXPECT_NE(refused([](LlamaModel& m) { m.head_dim = 8; }), "");
  EXPECT_NE(refused([](LlamaModel& m) { m.layers[1].mlp_norm.pop_back(); }),
            "");
  EXPECT_EQ(refused([](LlamaModel& m) { m.layers[1].up = m.layers[1].down; }),
            "layer 1 up: expected a coded matrix of shape (72, 40), "
            "got (40, 72)");
  EXPECT_EQ(refused([](LlamaModel& m) { m.layers[0].q.bias.pop_back(); }),
            "layer 0 q: expected a bias of 40 elements, got 39");
}

INSTANTIATE_TEST_SUITE_P(All, Decoder, ::testing::ValuesIn(available_targets()),
                         [](const auto& each) { return each.param->name; });

}  // namespace
}  // namespace mlx_entropy
