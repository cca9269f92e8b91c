// What the targets with 512-bit registers share: arithmetic but for products
// of integers, raw bits, and group scales. Needs F, BW, DQ and VL. Included by
// each of them inside its target region, after all standard headers.
#pragma once

namespace mlx_entropy {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

struct Avx512Vectors {
  using Float = __m512;
  static constexpr size_t kWidth = 16;
  static constexpr size_t kPanelCols = 4;
  static constexpr size_t kTallCols = 12;

  // to[c * 16 + r] = from[r * stride + c], 16 x 16.
  static void transpose(const float* from, size_t stride, float* to) {
    __m512 a[16], b[16];
    for (size_t i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * stride);
    for (size_t i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    // Element q of a[4 i + j] then holds column 4 q + j of rows 4 i to 4 i + 3.
    for (size_t i = 0; i < 16; i += 4) {
      a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
      a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
      a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
      a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (size_t j = 0; j < 4; ++j) {
      const __m512 even01 = _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88);
      const __m512 odd01 = _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd);
      const __m512 even23 = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0x88);
      const __m512 odd23 = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0xdd);
      _mm512_storeu_ps(to + j * 16, _mm512_shuffle_f32x4(even01, even23, 0x88));
      _mm512_storeu_ps(to + (j + 8) * 16,
                       _mm512_shuffle_f32x4(even01, even23, 0xdd));
      _mm512_storeu_ps(to + (j + 4) * 16,
                       _mm512_shuffle_f32x4(odd01, odd23, 0x88));
      _mm512_storeu_ps(to + (j + 12) * 16,
                       _mm512_shuffle_f32x4(odd01, odd23, 0xdd));
    }
  }

  static Float zero() { return _mm512_setzero_ps(); }
  static Float set(float a) { return _mm512_set1_ps(a); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float fma(Float a, Float b, Float c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static float sum(Float a) { return _mm512_reduce_add_ps(a); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float load_first(const float* p, size_t n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  }

  using Int = __m512i;
  static constexpr size_t kPairColumns = 6;
  static constexpr size_t kSingleColumns = 12;

  static Int int_zero() { return _mm512_setzero_si512(); }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Int shift_high(Int a) { return _mm512_slli_epi32(a, 8); }
  static Int load_panel(const uint8_t* p) { return _mm512_load_si512(p); }
  static Int broadcast(const uint8_t* x) {
    return _mm512_set1_epi32(mlx_entropy::load<int32_t>(x));
  }

  static void spread_mask(uint64_t mask, uint8_t* bytes) {
    _mm512_store_si512(bytes, _mm512_maskz_set1_epi8(mask, 1));
  }

  static void join_bits(const uint8_t* classes, const uint8_t* raw,
                        int raw_bits, uint8_t* out) {
    // Classes are at most 255 >> raw_bits, so no bit crosses a byte.
    __m512i value = _mm512_slli_epi16(_mm512_loadu_si512(classes),
                                      static_cast<unsigned>(raw_bits));
    for (int bit = 0; bit < raw_bits; ++bit) {
      value = _mm512_mask_add_epi8(
          value, mlx_entropy::load<uint64_t>(raw + 8 * bit), value,
          _mm512_set1_epi8(static_cast<char>(1 << bit)));
    }
    _mm512_storeu_si512(out, value);
  }

  static constexpr bool kJoinsWords = true;
  static void join_words(const uint8_t* classes, const uint8_t* raw,
                         int raw_bits, int shift, uint32_t base,
                         uint32_t* out) {
    // The bits beyond whole bytes, joined in bytes.
    const int whole = raw_bits & ~7;
    __m512i rest = _mm512_setzero_si512();
    for (int bit = 0; bit < raw_bits - whole; ++bit) {
      const uint8_t* const mask = raw + 8 * (whole + bit);
      rest =
          _mm512_mask_add_epi8(rest, mlx_entropy::load<uint64_t>(mask), rest,
                               _mm512_set1_epi8(static_cast<char>(1 << bit)));
    }
    alignas(64) uint8_t rest_bytes[kLanes];
    _mm512_store_si512(rest_bytes, rest);
    const __m128i class_at = _mm_cvtsi32_si128(raw_bits);  // 32 gives 0
    const __m128i rest_at = _mm_cvtsi32_si128(whole);
    const __m128i value_at = _mm_cvtsi32_si128(shift);
    const __m512i offset = _mm512_set1_epi32(static_cast<int>(base));
    for (size_t i = 0; i < kLanes; i += 16) {
      const auto bytes = [i](const uint8_t* p) {
        return _mm512_cvtepu8_epi32(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i)));
      };
      __m512i value =
          _mm512_or_si512(_mm512_sll_epi32(bytes(classes), class_at),
                          _mm512_sll_epi32(bytes(rest_bytes), rest_at));
      if (whole >= 8) value = _mm512_or_si512(value, bytes(raw));
      for (int bit = 8; bit < whole; bit += 8) {
        value = _mm512_or_si512(
            value,
            _mm512_sll_epi32(bytes(raw + 8 * bit), _mm_cvtsi32_si128(bit)));
      }
      _mm512_storeu_si512(
          out + i, _mm512_add_epi32(_mm512_sll_epi32(value, value_at), offset));
    }
  }

  // Bit patterns of 16 values to floats.
  static __m512 half_bits(FloatType type, __m512i bits) {
    return type == FloatType::kFloat16
               ? _mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits))
               : _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }

  // Of 16 values with the sign in the lowest bit.
  static __m512 half_words(FloatType type, const uint32_t* words) {
    const __m512i w = _mm512_loadu_si512(words);
    return half_bits(
        type, _mm512_or_si512(_mm512_srli_epi32(w, 1),
                              _mm512_and_si512(_mm512_slli_epi32(w, 15),
                                               _mm512_set1_epi32(0x8000))));
  }

  static constexpr bool kConvertsHalves = true;
  static void half_floats(FloatType type, const uint32_t* words, size_t n,
                          float* out) {
    for (size_t i = 0; i < n; i += 16) {
      _mm512_storeu_ps(out + i, half_words(type, words + i));
    }
  }

  static void half_groups(FloatType type, const uint32_t* scale_words,
                          const uint32_t* offset_words,
                          const uint32_t* correction_words, size_t n,
                          float* scales, float* biases) {
    const bool is_float16 = type == FloatType::kFloat16;
    const __m512i low15 = _mm512_set1_epi32(0x7fff);
    const __m512i sign = _mm512_set1_epi32(0x8000);
    for (size_t i = 0; i < n; i += 16) {
      const __m512 scale = half_words(type, scale_words + i);
      _mm512_storeu_ps(scales + i, scale);
      const __m512i offset = _mm512_sub_epi32(
          _mm512_loadu_si512(offset_words + i), _mm512_set1_epi32(kOffsetBias));
      const __m512 product = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(offset));
      __m512i bits;
      if (is_float16) {
        bits = _mm512_cvtepu16_epi32(
            _mm512_cvtps_ph(product, _MM_FROUND_TO_NEAREST_INT));
      } else {
        const __m512i p = _mm512_castps_si512(product);
        const __m512i odd =
            _mm512_and_si512(_mm512_srli_epi32(p, 16), _mm512_set1_epi32(1));
        bits = _mm512_srli_epi32(
            _mm512_add_epi32(_mm512_add_epi32(p, low15), odd), 16);
        // A NaN stays one, whatever rounding did to it.
        bits = _mm512_mask_mov_epi32(
            bits, _mm512_cmp_ps_mask(product, product, _CMP_UNORD_Q),
            _mm512_set1_epi32(0x7fc0));
      }
      bits =
          _mm512_maskz_mov_epi32(_mm512_test_epi32_mask(offset, offset), bits);
      // Sign and magnitude to an integer of the same order, and back.
      const __m512i magnitude = _mm512_and_si512(bits, low15);
      const __m512i ordered =
          _mm512_mask_xor_epi32(magnitude, _mm512_test_epi32_mask(bits, sign),
                                magnitude, _mm512_set1_epi32(-1));
      const __m512i moved = _mm512_add_epi32(
          ordered, _mm512_sub_epi32(
                       _mm512_loadu_si512(correction_words + i),
                       _mm512_set1_epi32(static_cast<int>(kCorrectionBias))));
      const __mmask16 negative = _mm512_movepi32_mask(moved);
      const __m512i result = _mm512_and_si512(
          _mm512_mask_xor_epi32(moved, negative, moved, _mm512_set1_epi32(-1)),
          low15);
      _mm512_storeu_ps(biases + i,
                       half_bits(type, _mm512_mask_or_epi32(result, negative,
                                                            result, sign)));
    }
  }
};

}  // namespace
}  // namespace mlx_entropy
