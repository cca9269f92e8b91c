// Norms, positions, activations and attention of every target, against sums in
// double precision.
#include "kernels/transformer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/kernels.h"

namespace mlx_entropy {
namespace {

using Floats = std::vector<float>;

class Transformer : public ::testing::TestWithParam<const KernelTable*> {
 protected:
  const TransformerKernels& kernels() { return *GetParam()->transformer; }

  Floats random(size_t n, float scale = 1.0f) {
    std::normal_distribution<float> normal;
    Floats values(n);
    for (float& value : values) value = scale * normal(random_);
    return values;
  }

  std::mt19937 random_{7};
  Scratch scratch_;
};

double relative_error(const Floats& actual,
                      const std::vector<double>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(actual[i] - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  return std::sqrt(error / norm);
}

TEST_P(Transformer, RmsNorm) {
  for (size_t n : {1, 3, 15, 16, 17, 64, 100, 576, 2049}) {
    const Floats x = random(n, 3), weight = random(n);
    double squares = 0;
    for (float value : x) squares += double{value} * value;
    const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + 0.1);
    std::vector<double> expected(n);
    for (size_t i = 0; i < n; ++i) expected[i] = x[i] * factor * weight[i];
    Floats out(n + 1, 5.0f);
    kernels().rms_norm(x.data(), weight.data(), n, 0.1f, out.data());
    EXPECT_LT(relative_error(out, expected), 1e-6) << n;
    EXPECT_EQ(out[n], 5.0f);
    Floats in_place = x;
    kernels().rms_norm(in_place.data(), weight.data(), n, 0.1f,
                       in_place.data());
    EXPECT_TRUE(std::equal(in_place.begin(), in_place.end(), out.begin()));
  }
}

TEST_P(Transformer, Add) {
  for (size_t n : {1, 16, 37}) {
    const Floats x = random(n);
    Floats y = random(n);
    Floats expected(n);
    for (size_t i = 0; i < n; ++i) expected[i] = x[i] + y[i];
    kernels().add(x.data(), n, y.data());
    EXPECT_EQ(y, expected);
  }
}

TEST_P(Transformer, SiluOfEveryMagnitude) {
  Floats gate;
  for (float x = -86; x <= 86; x += 0.0137f) gate.push_back(x);
  for (float x : {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-6f, 80.0f}) {
    gate.push_back(x);
  }
  const Floats up = random(gate.size());
  Floats out(gate.size());
  kernels().silu_multiply(gate.data(), up.data(), gate.size(), out.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double expected =
        double{gate[i]} / (1 + std::exp(-double{gate[i]})) * double{up[i]};
    EXPECT_NEAR(out[i], expected, 1e-6 * std::fabs(expected) + 1e-37)
        << gate[i];
  }
}

TEST_P(Transformer, SiluOfTheExtremes) {
  const float infinity = std::numeric_limits<float>::infinity();
  const Floats gate = {1e30f, -1e30f, -200.0f, std::nanf("")};
  const Floats up = {1.0f, 1.0f, 1.0f, 1.0f};
  Floats out(4);
  kernels().silu_multiply(gate.data(), up.data(), 4, out.data());
  EXPECT_EQ(out[0], 1e30f);
  EXPECT_LT(std::fabs(out[1]), 1e-7f);
  EXPECT_LT(std::fabs(out[2]), 1e-30f);
  EXPECT_TRUE(std::isnan(out[3]));
  EXPECT_LT(out[0], infinity);
}

TEST_P(Transformer, Rotate) {
  for (size_t dim : {2, 20, 64, 80, 96, 128}) {
    for (size_t pairs : {dim / 2, dim / 4}) {
      for (bool traditional : {false, true}) {
        const size_t heads = 3;
        Floats x = random(heads * dim);
        Floats cosines(pairs), sines(pairs);
        std::vector<double> expected(x.begin(), x.end());
        for (size_t i = 0; i < pairs; ++i) {
          const double angle = 0.3 * static_cast<double>(i + 1);
          cosines[i] = static_cast<float>(std::cos(angle));
          sines[i] = static_cast<float>(std::sin(angle));
          for (size_t h = 0; h < heads; ++h) {
            const size_t first = h * dim + (traditional ? 2 * i : i);
            const size_t second = traditional ? first + 1 : first + pairs;
            expected[first] =
                x[first] * std::cos(angle) - x[second] * std::sin(angle);
            expected[second] =
                x[first] * std::sin(angle) + x[second] * std::cos(angle);
          }
        }
        kernels().rotate({cosines.data(), sines.data(), pairs, traditional},
                         heads, dim, x.data());
        EXPECT_LT(relative_error(x, expected), 1e-6) << dim << " " << pairs;
      }
    }
  }
}

TEST_P(Transformer, FloatsOfEveryType) {
  for (FloatType type :
       {FloatType::kFloat32, FloatType::kFloat16, FloatType::kBfloat16}) {
    const Floats values = random(37);
    std::vector<uint8_t> stored(37 * 4);
    Floats loaded(37);
    kernels().store_floats(type, values.data(), 37, stored.data());
    kernels().load_floats(type, stored.data(), 37, loaded.data());
    for (size_t i = 0; i < 37; ++i) {
      EXPECT_EQ(loaded[i], to_float(type, from_float(type, values[i])));
    }
  }
}

struct Shape {
  size_t heads, kv_heads, dim, offset, tokens, capacity;
};

std::vector<double> reference(const AttentionArgs& args, const Floats& keys,
                              const Floats& values, size_t tokens) {
  const size_t dim = args.head_dim;
  std::vector<double> out(tokens * args.heads * dim, 0.0);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t h = 0; h < args.heads; ++h) {
      const size_t row = (t * args.heads + h) * dim;
      const size_t head = h / (args.heads / args.kv_heads) * args.capacity;
      std::vector<double> scores;
      for (size_t k = 0; k <= args.offset + t; ++k) {
        double score = 0;
        for (size_t d = 0; d < dim; ++d) {
          score += double{args.queries[row + d]} * keys[(head + k) * dim + d];
        }
        scores.push_back(score * args.scale);
      }
      const double top = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (double& score : scores) total += score = std::exp(score - top);
      for (size_t k = 0; k < scores.size(); ++k) {
        for (size_t d = 0; d < dim; ++d) {
          out[row + d] += scores[k] / total * values[(head + k) * dim + d];
        }
      }
    }
  }
  return out;
}

TEST_P(Transformer, Attention) {
  for (const Shape& shape :
       {Shape{1, 1, 64, 0, 1, 1}, Shape{9, 3, 64, 63, 1, 64},
        Shape{9, 3, 64, 64, 1, 80}, Shape{4, 4, 80, 130, 1, 256},
        Shape{4, 2, 96, 0, 70, 70}, Shape{8, 2, 128, 100, 33, 140},
        Shape{3, 1, 20, 5, 131, 256}, Shape{32, 1, 16, 0, 19, 64}}) {
    for (FloatType type :
         {FloatType::kFloat32, FloatType::kFloat16, FloatType::kBfloat16}) {
      const size_t cache = shape.kv_heads * shape.capacity * shape.dim;
      // Large scores, so that the running maximum moves.
      const Floats queries = random(shape.tokens * shape.heads * shape.dim, 3);
      Floats keys = random(cache), values = random(cache);
      std::vector<uint8_t> stored_keys(cache * 4), stored_values(cache * 4);
      kernels().store_floats(type, keys.data(), cache, stored_keys.data());
      kernels().store_floats(type, values.data(), cache, stored_values.data());
      kernels().load_floats(type, stored_keys.data(), cache, keys.data());
      kernels().load_floats(type, stored_values.data(), cache, values.data());
      Floats out(queries.size());
      const AttentionArgs args{.queries = queries.data(),
                               .keys = stored_keys.data(),
                               .values = stored_values.data(),
                               .type = type,
                               .heads = shape.heads,
                               .kv_heads = shape.kv_heads,
                               .head_dim = shape.dim,
                               .capacity = shape.capacity,
                               .offset = shape.offset,
                               .scale = 0.3f,
                               .out = out.data(),
                               .out_stride = shape.heads * shape.dim};
      for (size_t head = 0; head < shape.kv_heads; ++head) {
        for (size_t first = 0; first < shape.tokens; first += 30) {
          kernels().attend(args, head, first,
                           std::min<size_t>(30, shape.tokens - first),
                           scratch_);
        }
      }
      EXPECT_LT(
          relative_error(out, reference(args, keys, values, shape.tokens)),
          1e-5)
          << shape.dim << " " << shape.tokens;
    }
  }
}

// What lies beyond the tokens of a cache does not matter, whatever it is.
TEST_P(Transformer, AttentionDoesNotLookAhead) {
  const size_t dim = 64, capacity = 128;
  const Floats queries = random(dim), keys = random(capacity * dim);
  Floats values = random(capacity * dim);
  AttentionArgs args{.queries = queries.data(),
                     .keys = keys.data(),
                     .values = values.data(),
                     .heads = 1,
                     .kv_heads = 1,
                     .head_dim = dim,
                     .capacity = capacity,
                     .offset = 9,
                     .scale = 1.0f,
                     .out_stride = dim};
  Floats out(dim), after(dim), stale = keys;
  args.out = out.data();
  kernels().attend(args, 0, 0, 1, scratch_);
  std::fill(stale.begin() + 10 * dim, stale.end(), std::nanf(""));
  std::fill(values.begin() + 10 * dim, values.end(), std::nanf(""));
  args.keys = stale.data();
  args.out = after.data();
  kernels().attend(args, 0, 0, 1, scratch_);
  EXPECT_EQ(out, after);
}

INSTANTIATE_TEST_SUITE_P(All, Transformer,
                         ::testing::ValuesIn(available_targets()),
                         [](const auto& each) { return each.param->name; });

}  // namespace
}  // namespace mlx_entropy
