// Vectors of 16 floats: a register of AVX-512, or two of AVX2. Operators go number by number.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int kLanes = 16;  // floats in a vector

using Half = uint16_t;  // the bits of an fp16

#ifdef __AVX512F__

using Vec = __m512;
using Words = __m512i;  // 16 of 32 bits
using Mask = __mmask16;

inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Vec zeros() { return _mm512_setzero_ps(); }

// The first `count` lanes, or none or all.
inline Mask first_lanes(int count) {
  return count >= kLanes ? 0xffff : static_cast<Mask>((1u << std::max(count, 0)) - 1);
}

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Other lanes are 0.
inline Vec load(Mask lanes, const float* p) { return _mm512_maskz_loadu_ps(lanes, p); }
inline Vec load(Mask lanes, const Half* p) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p));
}
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline void store(Mask lanes, float* p, Vec v) { _mm512_mask_storeu_ps(p, lanes, v); }

inline Words load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
inline Words all_words(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
inline Vec as_floats(Words x) { return _mm512_castsi512_ps(x); }

// `x` where the mask is, `other` elsewhere.
inline Vec choose(Mask lanes, Vec x, Vec other) { return _mm512_mask_mov_ps(other, lanes, x); }

// a b + c, a b - c and c - a b, rounded once.
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec multiply_subtract(Vec a, Vec b, Vec c) { return _mm512_fmsub_ps(a, b, c); }
inline Vec subtract_product(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }

// Where either is no number, the second.
inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }

inline Vec nearest_integer(Vec x) { return _mm512_roundscale_ps(x, 0); }

// x 2ⁿ for integers from -126 to 127.
inline Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }

// 1 / x; a step of Newton's doubles the 14 bits of the unit's own.
inline Vec inverse_of(Vec x) {
  const Vec near = _mm512_rcp14_ps(x);
  return near * subtract_product(x, near, all(2.0f));
}

inline float sum_of_lanes(Vec x) { return _mm512_reduce_add_ps(x); }
inline float largest_lane(Vec x) { return _mm512_reduce_max_ps(x); }

// Transposes 16 rows of 16 numbers, in four rounds of pairs.
inline void transpose(Vec (&x)[kLanes]) {
  Vec y[kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(y[i + j]), b = _mm512_castps_pd(y[i + j + 2]);
      x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(x[j], x[j + 4], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(x[j], x[j + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(x[j + 8], x[j + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(x[j + 8], x[j + 12], 0xdd);
    y[j] = _mm512_shuffle_f32x4(a, c, 0x88);
    y[j + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    y[j + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    y[j + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

#else  // AVX2, FMA and F16C

struct Vec {
  __m256 low, high;
};

struct Words {
  __m256i low, high;
};

struct Mask {
  int count;  // of the first lanes, the only ones that are asked for
};

inline Vec operator+(Vec a, Vec b) { return {a.low + b.low, a.high + b.high}; }
inline Vec operator-(Vec a, Vec b) { return {a.low - b.low, a.high - b.high}; }
inline Vec operator*(Vec a, Vec b) { return {a.low * b.low, a.high * b.high}; }
inline Vec operator/(Vec a, Vec b) { return {a.low / b.low, a.high / b.high}; }

inline Vec all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }

inline Mask first_lanes(int count) { return {std::clamp(count, 0, kLanes)}; }

// All bits of the mask's lanes.
inline Words lanes_of(Mask lanes) {
  const __m256i count = _mm256_set1_epi32(lanes.count);
  return {_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
          _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}

inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Vec load(const Half* p) {
  const auto* halves = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline Vec load(Mask lanes, const float* p) {
  const Words mask = lanes_of(lanes);
  return {_mm256_maskload_ps(p, mask.low), _mm256_maskload_ps(p + 8, mask.high)};
}
// Of an odd number of lanes it reads the half behind them too.
inline Vec load(Mask lanes, const Half* p) {
  const __m256i pairs = _mm256_cmpgt_epi32(_mm256_set1_epi32((lanes.count + 1) / 2),
                                           _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i some = _mm256_maskload_epi32(reinterpret_cast<const int*>(p), pairs);
  const Words mask = lanes_of(lanes);
  return {_mm256_and_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(some)), _mm256_castsi256_ps(mask.low)),
          _mm256_and_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(some, 1)),
                        _mm256_castsi256_ps(mask.high))};
}
inline void store(float* p, Vec v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
inline void store(Mask lanes, float* p, Vec v) {
  const Words mask = lanes_of(lanes);
  _mm256_maskstore_ps(p, mask.low, v.low);
  _mm256_maskstore_ps(p + 8, mask.high, v.high);
}

inline Words load_words(const uint32_t* p) {
  const auto* words = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
inline Words all_words(uint32_t x) {
  const __m256i word = _mm256_set1_epi32(static_cast<int>(x));
  return {word, word};
}
inline Vec as_floats(Words x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }

inline Vec choose(Mask lanes, Vec x, Vec other) {
  const Vec mask = as_floats(lanes_of(lanes));
  return {_mm256_blendv_ps(other.low, x.low, mask.low),
          _mm256_blendv_ps(other.high, x.high, mask.high)};
}

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Vec multiply_subtract(Vec a, Vec b, Vec c) {
  return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline Vec subtract_product(Vec a, Vec b, Vec c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}

inline Vec larger(Vec a, Vec b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Vec smaller(Vec a, Vec b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

inline Vec nearest_integer(Vec x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, kNearest), _mm256_round_ps(x.high, kNearest)};
}

inline Vec scale_by_power(Vec x, Vec n) {
  const auto power = [](__m256 n) {  // as an exponent's bits
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  };
  return {x.low * power(n.low), x.high * power(n.high)};
}

inline Vec inverse_of(Vec x) { return all(1.0f) / x; }

inline float sum_of_lanes(Vec x) {
  const __m256 eight = x.low + x.high;
  const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
}

inline float largest_lane(Vec x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return std::max(two[0], two[1]);
}

// Transposes 8 rows of 8 numbers, in three rounds of pairs.
inline void transpose(__m256 (&x)[8]) {
  __m256 y[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m256d a = _mm256_castps_pd(y[i + j]), b = _mm256_castps_pd(y[i + j + 2]);
      x[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      x[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    y[j] = _mm256_permute2f128_ps(x[j], x[j + 4], 0x20);
    y[j + 4] = _mm256_permute2f128_ps(x[j], x[j + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) x[i] = y[i];
}

// Transposes 16 rows of 16 numbers, a quarter at a time.
inline void transpose(Vec (&x)[kLanes]) {
  constexpr int kHalf = kLanes / 2;
  __m256 quarters[2][2][kHalf];
  for (int i = 0; i < kLanes; ++i) {
    quarters[0][i / kHalf][i % kHalf] = x[i].low;
    quarters[1][i / kHalf][i % kHalf] = x[i].high;
  }
  for (auto& quarter : quarters) {
    transpose(quarter[0]);
    transpose(quarter[1]);
  }
  for (int i = 0; i < kLanes; ++i) {
    x[i] = {quarters[i / kHalf][0][i % kHalf], quarters[i / kHalf][1][i % kHalf]};
  }
}

#endif

}  // namespace
