// Matrices to encode, with what their decoded arrays must be.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/float_bits.h"
#include "convert/encode_matrix.h"
#include "quant/affine.h"
#include "quant/dense.h"
#include "support/bytes.h"

namespace mlx_entropy::testing {

// Values of a float type as MLX stores them.
inline Bytes pack_floats(FloatType type, const std::vector<uint32_t>& bits) {
  const size_t size = bit_width(type) / 8;
  Bytes bytes(bits.size() * size);
  for (size_t i = 0; i < bits.size(); ++i) {
    std::memcpy(&bytes[i * size], &bits[i], size);
  }
  return bytes;
}

struct AffineMatrix {
  AffineArrays arrays;
  std::vector<uint32_t> codes;  // packed
  Bytes scales, biases;

  void point() {
    arrays.codes = codes.data();
    arrays.scales = scales.data();
    arrays.biases = biases.data();
  }
};

// Gaussian codes; biases near -scale * 2^(bits - 1), as mx.quantize makes
// them, or anything at all.
inline AffineMatrix random_affine(uint32_t seed, uint32_t rows, uint32_t cols,
                                  int bits, uint32_t group_size, FloatType type,
                                  bool wild_biases) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const size_t groups = size_t{rows} * cols / group_size;
  AffineMatrix matrix;
  matrix.arrays = {rows, cols,    bits,    group_size,
                   type, nullptr, nullptr, nullptr};
  std::vector<uint8_t> codes(size_t{rows} * cols);
  const int top = (1 << bits) - 1;
  for (uint8_t& code : codes) {
    const float value = (0.5f + normal(random) / 6) * static_cast<float>(top);
    code = static_cast<uint8_t>(
        std::fmin(std::fmax(std::round(value), 0), static_cast<float>(top)));
  }
  matrix.codes.resize(codes.size() * static_cast<size_t>(bits) / 32);
  pack_codes(codes.data(), bits, codes.size(),
             reinterpret_cast<uint8_t*>(matrix.codes.data()));
  std::vector<uint32_t> scales(groups), biases(groups);
  for (size_t g = 0; g < groups; ++g) {
    const float scale = 0.01f * (1.5f + 0.2f * normal(random));
    scales[g] = from_float(type, random() % 2 == 0 ? scale : -scale);
    const float bias =
        wild_biases ? normal(random)
                    : -to_float(type, scales[g]) * static_cast<float>(top / 2);
    biases[g] = from_float(type, bias);
  }
  matrix.scales = pack_floats(type, scales);
  matrix.biases = pack_floats(type, biases);
  return matrix;
}

inline EncodeOptions encode_options(uint32_t tile_rows, Codec codec) {
  EncodeOptions options;
  options.codec = codec;
  options.tile_rows = tile_rows;
  return options;
}

inline Bytes encode(AffineMatrix* matrix, uint32_t tile_rows,
                    Codec codec = Codec::kRans) {
  matrix->point();
  return encode_affine(matrix->arrays, encode_options(tile_rows, codec))
      .value();
}

struct FloatMatrix {
  FloatType type;
  uint32_t rows, cols;
  Bytes values;
};

inline FloatMatrix random_floats(uint32_t seed, uint32_t rows, uint32_t cols,
                                 FloatType type) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint32_t> bits(size_t{rows} * cols);
  for (uint32_t& value : bits) value = from_float(type, normal(random) / 50);
  return {type, rows, cols, pack_floats(type, bits)};
}

inline Bytes encode(const FloatMatrix& matrix, uint32_t tile_rows,
                    Codec codec = Codec::kRans) {
  return encode_matrix(FloatSource(matrix.values.data(), matrix.type,
                                   matrix.rows, matrix.cols),
                       encode_options(tile_rows, codec))
      .value();
}

inline Bytes encode_symbols(const Bytes& symbols, uint32_t rows, uint32_t cols,
                            uint32_t tile_rows, Codec codec = Codec::kRans) {
  return encode_matrix(SymbolSource(symbols.data(), rows, cols),
                       encode_options(tile_rows, codec))
      .value();
}

// Symbols drawn with probabilities that fall by `ratio` from one to the next.
inline Bytes random_symbols(uint32_t seed, size_t count, int alphabet,
                            double ratio) {
  std::mt19937 random(seed);
  std::vector<double> weights;
  for (int i = 0; i < alphabet; ++i) weights.push_back(std::pow(ratio, i));
  std::discrete_distribution<int> draw(weights.begin(), weights.end());
  Bytes symbols(count);
  for (uint8_t& symbol : symbols) symbol = static_cast<uint8_t>(draw(random));
  return symbols;
}

}  // namespace mlx_entropy::testing
