// What the kernel uses of AVX-512, in AVX2: lets CPUs without it run the code for those that have it.
//
// Included before all else. Intel's Intrinsics Guide says what each of these does; where it leaves the
// order of a sum open, there is one order here.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace emulated {

constexpr int kLanes = 16;

using Ints [[gnu::vector_size(64)]] = int32_t;  // which the kernel takes its integers for

struct Floats {
  __m256 low, high;
  float operator[](int lane) const { return reinterpret_cast<const float*>(this)[lane]; }
};

struct Words {
  __m256i low, high;
  Words() = default;
  Words(__m256i low, __m256i high) : low(low), high(high) {}
  Words(Ints x) { std::memcpy(this, &x, sizeof x); }
  operator Ints() const {
    Ints x;
    std::memcpy(&x, this, sizeof x);
    return x;
  }
};

// Calls `work` with the low halves, then with the high ones.
template <class To, class Work, class... From>
To by_halves(Work work, const From&... from) {
  return To{work(from.low...), work(from.high...)};
}

template <class To, class From>
To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(static_cast<void*>(&to), &from, sizeof to);
  return to;
}

template <class To>
To load(const void* from) {
  To to;
  std::memcpy(static_cast<void*>(&to), from, sizeof to);
  return to;
}

template <class From>
void store(void* to, const From& from) {
  std::memcpy(to, &from, sizeof from);
}

inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Words all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

#define UPT_EACH(op)                                                                    \
  inline Floats operator op(const Floats& a, const Floats& b) {                         \
    return by_halves<Floats>([](__m256 x, __m256 y) { return x op y; }, a, b);          \
  }                                                                                     \
  inline Floats& operator op##=(Floats& a, const Floats& b) { return a = a op b; }
UPT_EACH(+)
UPT_EACH(-)
UPT_EACH(*)
UPT_EACH(/)
#undef UPT_EACH

// All bits of the lanes that a mask names.
inline Words spread(__mmask16 lanes) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const auto half = [&](int some) {
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(some), bits), bits);
  };
  return {half(lanes & 0xff), half(lanes >> 8)};
}

inline Floats load_some(__mmask16 lanes, const void* from) {
  const auto* p = static_cast<const float*>(from);
  const Words mask = spread(lanes);
  return {_mm256_maskload_ps(p, mask.low), _mm256_maskload_ps(p + 8, mask.high)};
}

inline __m256i load_some_shorts(__mmask16 lanes, const void* from) {
  uint16_t to[kLanes] = {};
  for (int i = 0; i < kLanes; ++i) {
    if (lanes >> i & 1) std::memcpy(to + i, static_cast<const uint16_t*>(from) + i, sizeof *to);
  }
  return load<__m256i>(to);
}

template <class From>
void store_some(void* to, __mmask16 lanes, const From& from) {
  auto* p = static_cast<int*>(to);
  const Words mask = spread(lanes), words = as<Words>(from);
  _mm256_maskstore_epi32(p, mask.low, words.low);
  _mm256_maskstore_epi32(p + 8, mask.high, words.high);
}

inline Floats choose(const Floats& other, __mmask16 lanes, const Floats& x) {
  const Floats mask = as<Floats>(spread(lanes));
  return by_halves<Floats>(
      [](__m256 a, __m256 b, __m256 m) { return _mm256_blendv_ps(a, b, m); }, other, x, mask);
}

inline Floats widen(__m256i halves) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}

// Halves folded onto each other until one lane is left.
template <class Number, class From, class Fold>
Number folded(const From& from, Fold fold) {
  Number x[kLanes];
  std::memcpy(x, &from, sizeof x);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) x[i] = fold(x[i], x[i + half]);
  }
  return x[0];
}

// Two quarters of 128 bits of the first, then two of the second.
inline Floats quarters(const Floats& a, const Floats& b, int choice) {
  __m128 of_a[4], of_b[4];
  std::memcpy(of_a, &a, sizeof a);
  std::memcpy(of_b, &b, sizeof b);
  const auto chosen = [&](int place) { return choice >> 2 * place & 3; };
  return {_mm256_set_m128(of_a[chosen(1)], of_a[chosen(0)]),
          _mm256_set_m128(of_b[chosen(3)], of_b[chosen(2)])};
}

// 1 / x to 14 bits, the rest cut off.
inline Floats rough_inverse(const Floats& x) {
  const __m256 kept = _mm256_castsi256_ps(_mm256_set1_epi32(~0x1ff));
  return by_halves<Floats>([&](__m256 half) { return _mm256_and_ps(1 / half, kept); }, x);
}

// As far as 2ⁿ itself is a normal number.
inline Floats scaled_by_power(const Floats& x, const Floats& n) {
  return by_halves<Floats>(
      [](__m256 half, __m256 power) {
        const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
        return half * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
      },
      x, n);
}

inline __m128i low_bytes(const Words& words, bool is_saturated) {
  uint8_t to[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const auto word = static_cast<uint32_t>(Ints(words)[i]);
    to[i] = static_cast<uint8_t>(is_saturated ? std::min(word, 255u) : word);
  }
  return load<__m128i>(to);
}

// To the nearest, of two as near the even one; what is no number stays none, tiny numbers become zero.
inline uint16_t to_bf16(float x) {
  const auto bits = as<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  if (std::abs(x) < 0x1p-126f) return static_cast<uint16_t>(bits >> 16 & 0x8000);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline __m256bh to_bf16(const Floats& x) {
  uint16_t to[kLanes];
  for (int i = 0; i < kLanes; ++i) to[i] = to_bf16(x[i]);
  return load<__m256bh>(to);
}

// x0 w0 + x1 w1 + sum of the two bf16 in each word.
inline Floats add_products_of_bf16(const Floats& sum, const Words& x, const Words& w) {
  const auto upper = [](__m256i words) {
    return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(~0xffff)));
  };
  const auto lower = [](__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); };
  return by_halves<Floats>(
      [&](__m256 before, __m256i a, __m256i b) {
        return _mm256_fmadd_ps(lower(a), lower(b), _mm256_fmadd_ps(upper(a), upper(b), before));
      },
      sum, x, w);
}

// The same of four bytes: those of w count from -128 to 127, so do those of x where they are signed,
// else from 0 to 255.
template <bool is_signed>
Words add_products_of_bytes(const Words& sum, const Words& x, const Words& w) {
  const auto odd = [](__m256i words) { return _mm256_srai_epi16(words, 8); };
  const auto even = [&](__m256i words) { return odd(_mm256_slli_epi16(words, 8)); };
  const auto low_byte = _mm256_set1_epi16(0xff);
  return by_halves<Words>(
      [&](__m256i before, __m256i a, __m256i b) {
        const __m256i a0 = is_signed ? even(a) : _mm256_and_si256(a, low_byte);
        const __m256i a1 = is_signed ? odd(a) : _mm256_srli_epi16(a, 8);
        const __m256i products =
            _mm256_add_epi32(_mm256_madd_epi16(a0, even(b)), _mm256_madd_epi16(a1, odd(b)));
        return _mm256_add_epi32(before, products);
      },
      sum, x, w);
}

}  // namespace emulated

// In place of GCC's own, which ask for a CPU that has them.
#define __AVX512F__ 1
#define __m512 emulated::Floats
#define __m512d emulated::Floats
#define __m512i emulated::Words
#define __m512bh emulated::Words
#define UPT_FLOATS(intrinsic, ...) \
  emulated::by_halves<emulated::Floats>([](auto... x) { return intrinsic(x...); }, __VA_ARGS__)
#define UPT_WORDS(intrinsic, ...) \
  emulated::by_halves<emulated::Words>([](auto... x) { return intrinsic(x...); }, __VA_ARGS__)
#define UPT_PAIRS(intrinsic, a, b)                                                          \
  emulated::by_halves<emulated::Floats>(                                                    \
      [](__m256 x, __m256 y) {                                                              \
        return _mm256_castpd_ps(intrinsic(_mm256_castps_pd(x), _mm256_castps_pd(y)));       \
      },                                                                                    \
      a, b)
#define _mm512_set1_ps(x) emulated::all(static_cast<float>(x))
#define _mm512_setzero_ps() emulated::all(0.0f)
#define _mm512_loadu_ps(p) emulated::load<emulated::Floats>(p)
#define _mm512_storeu_ps(p, x) emulated::store(p, x)
#define _mm512_maskz_loadu_ps(lanes, p) emulated::load_some(lanes, p)
#define _mm512_mask_storeu_ps(p, lanes, x) emulated::store_some(p, lanes, x)
#define _mm512_mask_mov_ps(other, lanes, x) emulated::choose(other, lanes, x)
#define _mm512_cvtss_f32(x) (x)[0]
#define _mm512_castps_pd(x) (x)
#define _mm512_castpd_ps(x) (x)
#define _mm512_castps_si512(x) emulated::as<emulated::Words>(x)
#define _mm512_castsi512_ps(x) emulated::as<emulated::Floats>(x)
#define _mm512_fmadd_ps(a, b, c) UPT_FLOATS(_mm256_fmadd_ps, a, b, c)
#define _mm512_fmsub_ps(a, b, c) UPT_FLOATS(_mm256_fmsub_ps, a, b, c)
#define _mm512_fnmadd_ps(a, b, c) UPT_FLOATS(_mm256_fnmadd_ps, a, b, c)
#define _mm512_max_ps(a, b) UPT_FLOATS(_mm256_max_ps, a, b)
#define _mm512_min_ps(a, b) UPT_FLOATS(_mm256_min_ps, a, b)
#define _mm512_unpacklo_ps(a, b) UPT_FLOATS(_mm256_unpacklo_ps, a, b)
#define _mm512_unpackhi_ps(a, b) UPT_FLOATS(_mm256_unpackhi_ps, a, b)
#define _mm512_unpacklo_pd(a, b) UPT_PAIRS(_mm256_unpacklo_pd, a, b)
#define _mm512_unpackhi_pd(a, b) UPT_PAIRS(_mm256_unpackhi_pd, a, b)
#define _mm512_shuffle_f32x4(a, b, choice) emulated::quarters(a, b, choice)
#define _mm512_roundscale_ps(x, mode)    \
  emulated::by_halves<emulated::Floats>([](__m256 half) { return _mm256_round_ps(half, mode); }, x)
#define _mm512_scalef_ps(x, n) emulated::scaled_by_power(x, n)
#define _mm512_rcp14_ps(x) emulated::rough_inverse(x)
#define _mm512_reduce_add_ps(x) emulated::folded<float>(x, [](float a, float b) { return a + b; })
#define _mm512_reduce_max_ps(x) emulated::folded<float>(x, [](float a, float b) { return std::max(a, b); })
#define _mm512_reduce_min_ps(x) emulated::folded<float>(x, [](float a, float b) { return std::min(a, b); })
#define _mm512_cvtph_ps(x) emulated::widen(x)
#define _mm512_cvtneps_pbh(x) emulated::to_bf16(x)
#define _mm512_cvtps_epi32(x) UPT_WORDS(_mm256_cvtps_epi32, x)
#define _mm512_cvtepi32_ps(x) UPT_FLOATS(_mm256_cvtepi32_ps, emulated::Words(x))
#define _mm512_cvtepi32_epi8(x) emulated::low_bytes(x, false)
#define _mm512_cvtusepi32_epi8(x) emulated::low_bytes(x, true)
#define _mm512_dpbf16_ps(sum, x, w) emulated::add_products_of_bf16(sum, x, w)
#define _mm512_dpbusd_epi32(sum, x, w) emulated::add_products_of_bytes<false>(sum, x, w)
#define _mm512_loadu_si512(p) emulated::load<emulated::Words>(p)
#define _mm512_storeu_si512(p, x) emulated::store(p, x)
#define _mm512_mask_storeu_epi32(p, lanes, x) emulated::store_some(p, lanes, x)
#define _mm512_setzero_si512() emulated::all(0)
#define _mm512_set1_epi32(x) emulated::all(static_cast<int32_t>(x))
#define _mm512_srli_epi32(x, bits) \
  emulated::by_halves<emulated::Words>([](__m256i half) { return _mm256_srli_epi32(half, bits); }, x)
#define _mm512_add_epi32(a, b) UPT_WORDS(_mm256_add_epi32, a, b)
#define _mm512_and_si512(a, b) UPT_WORDS(_mm256_and_si256, a, b)
#define _mm512_or_si512(a, b) UPT_WORDS(_mm256_or_si256, a, b)
#define _mm512_xor_si512(a, b) UPT_WORDS(_mm256_xor_si256, a, b)
#define _mm512_max_epu32(a, b) UPT_WORDS(_mm256_max_epu32, a, b)
#define _mm512_reduce_max_epu32(x) \
  emulated::folded<uint32_t>(x, [](uint32_t a, uint32_t b) { return std::max(a, b); })
#define _mm256_maskz_loadu_epi16(lanes, p) emulated::load_some_shorts(lanes, p)
