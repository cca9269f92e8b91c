// Row kernels of a transformer, for any target: norms, rotary positions,
// activations, conversions. Attention is in body/attention.h.
#pragma once

namespace mlx_entropy::body {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

// The last elements of a row as a vector, zero beyond them, and back.
template <class Target>
typename Target::Float load_tail(const float* from, size_t n) {
  float padded[Target::kWidth] = {};
  for (size_t i = 0; i < n; ++i) padded[i] = from[i];
  return Target::load(padded);
}

template <class Target>
void store_tail(float* to, size_t n, typename Target::Float value) {
  float padded[Target::kWidth];
  Target::store(padded, value);
  for (size_t i = 0; i < n; ++i) to[i] = padded[i];
}

// to[i] = f(a[i], b[i]); arrays may overlap exactly. Functions are classes,
// because GCC compiles a lambda in a template without the target's features.
template <class Target, class Function>
void map2(const float* a, const float* b, size_t n, float* to,
          const Function& f) {
  size_t i = 0;
  for (; i + Target::kWidth <= n; i += Target::kWidth) {
    Target::store(to + i, f(Target::load(a + i), Target::load(b + i)));
  }
  if (i == n) return;
  store_tail<Target>(
      to + i, n - i,
      f(load_tail<Target>(a + i, n - i), load_tail<Target>(b + i, n - i)));
}

// e^x with a relative error below 2e-7 for x in [-87, 88], saturated outside.
// x = n ln 2 + r, and the polynomial is Cephes' for |r| <= ln 2 / 2.
template <class Target>
typename Target::Float exp(typename Target::Float x) {
  using F = typename Target::Float;
  // The constant goes first, so that NaN goes through.
  x = Target::max(Target::set(-87.3f), Target::min(Target::set(88.0f), x));
  const F n = Target::round(Target::mul(x, Target::set(1.44269504f)));
  F r = Target::fma(n, Target::set(-0.693359375f), x);
  r = Target::fma(n, Target::set(2.12194440e-4f), r);
  F p = Target::set(1.9875691500e-4f);
  p = Target::fma(p, r, Target::set(1.3981999507e-3f));
  p = Target::fma(p, r, Target::set(8.3334519073e-3f));
  p = Target::fma(p, r, Target::set(4.1665795894e-2f));
  p = Target::fma(p, r, Target::set(1.6666665459e-1f));
  p = Target::fma(p, r, Target::set(5.0000001201e-1f));
  const F one_plus_r = Target::add(r, Target::set(1.0f));
  return Target::scale(Target::fma(p, Target::mul(r, r), one_plus_r), n);
}

template <class Target>
struct ScaleWeigh {
  using F = typename Target::Float;
  F operator()(F value, F weight) const {
    return Target::mul(Target::mul(value, factor), weight);
  }
  F factor;
};

template <class Target>
struct Add {
  using F = typename Target::Float;
  F operator()(F a, F b) const { return Target::add(a, b); }
};

template <class Target>
struct SiluMultiply {
  using F = typename Target::Float;
  F operator()(F gate, F up) const {
    const F minus = Target::mul(gate, Target::set(-1.0f));
    const F divisor = Target::add(Target::set(1.0f), exp<Target>(minus));
    return Target::div(Target::mul(gate, up), divisor);
  }
};

template <class Target>
void rms_norm(const float* x, const float* weight, size_t n, float eps,
              float* out) {
  using F = typename Target::Float;
  constexpr size_t kChains = 4;
  F sums[kChains];
  for (F& sum : sums) sum = Target::zero();
  size_t i = 0;
  for (; i + kChains * Target::kWidth <= n; i += kChains * Target::kWidth) {
    for (size_t c = 0; c < kChains; ++c) {
      const F value = Target::load(x + i + c * Target::kWidth);
      sums[c] = Target::fma(value, value, sums[c]);
    }
  }
  float squares = Target::sum(Target::add(Target::add(sums[0], sums[1]),
                                          Target::add(sums[2], sums[3])));
  for (; i < n; ++i) squares += x[i] * x[i];
  const float mean = squares / static_cast<float>(n);
  const ScaleWeigh<Target> scale{
      Target::set(1.0f / __builtin_sqrtf(mean + eps))};
  map2<Target>(x, weight, n, out, scale);
}

template <class Target>
void add(const float* x, size_t n, float* to) {
  map2<Target>(x, to, n, to, Add<Target>());
}

template <class Target>
void silu_multiply(const float* gate, const float* up, size_t n, float* out) {
  map2<Target>(gate, up, n, out, SiluMultiply<Target>());
}

template <class Target>
void rotate(const Rotation& rotation, size_t heads, size_t head_dim, float* x) {
  const float* const cosines = rotation.cosines;
  const float* const sines = rotation.sines;
  const size_t pairs = rotation.pairs;
  for (size_t h = 0; h < heads; ++h, x += head_dim) {
    if (rotation.traditional) {
      for (size_t i = 0; i < pairs; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = a * sines[i] + b * cosines[i];
      }
      continue;
    }
    float* const y = x + pairs;
    size_t i = 0;
    for (; i + Target::kWidth <= pairs; i += Target::kWidth) {
      const auto a = Target::load(x + i), b = Target::load(y + i);
      const auto c = Target::load(cosines + i), d = Target::load(sines + i);
      Target::store(x + i, Target::sub(Target::mul(a, c), Target::mul(b, d)));
      Target::store(y + i, Target::fma(a, d, Target::mul(b, c)));
    }
    for (; i < pairs; ++i) {
      const float a = x[i], b = y[i];
      x[i] = a * cosines[i] - b * sines[i];
      y[i] = a * sines[i] + b * cosines[i];
    }
  }
}

template <class Target>
void load_floats(FloatType type, const void* from, size_t n, float* to) {
  const auto* const halves = static_cast<const uint16_t*>(from);
  if (type == FloatType::kFloat32) {
    __builtin_memcpy(to, from, n * sizeof(float));
  } else if (type == FloatType::kFloat16) {
    size_t i = 0;
    for (; i + Target::kWidth <= n; i += Target::kWidth) {
      Target::store(to + i, Target::from_float16(halves + i));
    }
    for (; i < n; ++i) to[i] = float16_to_float(halves[i]);
  } else {
    for (size_t i = 0; i < n; ++i) to[i] = bfloat16_to_float(halves[i]);
  }
}

// The conversions are branch-free, so these loops vectorize on every target.
template <class Target>
void store_floats(FloatType type, const float* from, size_t n, void* to) {
  auto* const halves = static_cast<uint16_t*>(to);
  if (type == FloatType::kFloat32) {
    __builtin_memcpy(to, from, n * sizeof(float));
  } else if (type == FloatType::kFloat16) {
    for (size_t i = 0; i < n; ++i) {
      halves[i] = static_cast<uint16_t>(float_to_float16(from[i]));
    }
  } else {
    for (size_t i = 0; i < n; ++i) {
      halves[i] = static_cast<uint16_t>(float_to_bfloat16(from[i]));
    }
  }
}

}  // namespace
}  // namespace mlx_entropy::body
