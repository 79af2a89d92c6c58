// The mixed-batch encoder on CPUs with AVX-512 or AVX2: all layers of a packed batch in one call.
//
// The maths is section 3 of docs/architecture.md, the packed layout that of upt_server/native/
// runner.py, the reason for this file docs/decisions/005-native-kernel.md. Every token is computed
// by the same operations in the same order whatever stands beside it, so a row's answer does not
// depend on the batch to the last bit.
//
// Gates average over a whole row and attention reads one; nothing else looks beyond its token. So a
// thread either takes whole rows through all layers, or, where rows are long or few, a layer is a
// few phases with a barrier between them, in which threads take blocks of tokens, or pairs of row
// and head.
// Nothing is allocated here: the caller brings the workspace.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "tiles.h"
#include "vectors.h"

namespace {

// How much of a product is in registers: 14 tokens by 32 outputs are 28 sums of AVX-512, beside them 2
// weights and 1 input; 6 by 16 are 12 of AVX2.
#ifdef __AVX512F__
constexpr int kVectors = 2, kTile = 14, kWide = 4, kLowered = 12;
#else
constexpr int kVectors = 1, kTile = 6, kWide = 1, kLowered = 6;
#endif
constexpr int kPanel = kVectors * kLanes;  // outputs of a weight panel
constexpr int kRows = 16;           // rows of an AMX tile, and 32-bit words of each
constexpr int kPair = 2 * kRows;    // tokens of a pair of AMX tiles
constexpr int kShares = 4;          // a row may be one part in so many of a thread's work, to group
constexpr int kQueries = 6;         // queries of an attention tile
constexpr int kPad = kLanes;        // floats behind each row, so that rows fall into different sets

enum Precision : int32_t { kFp32, kBf16, kInt8 };
enum Activation : int32_t { kRelu, kGelu, kSilu, kTanh, kGeluTanh };
enum Reading : int32_t { kFirstToken, kMeanOfTokens, kEachToken };
enum Site : int32_t { kAttentionIn, kAttentionOut, kFfnUp, kFfnDown, kBottleneck, kSites };

// y = x Wᵀ + b. `weight` is [panel][word][kPanel] words of 32 bits: one fp32, two bf16 or four
// int8 inputs of one output. For AMX there are whole tiles of words, the last ones zero, and fp32 is
// [output / kRows][word / kRows][plane][kRows][kRows] words of four int8. `scale` is that of an output's
// integers, `sum` the sum of its weights; bf16 and fp32 on vectors have neither, fp32 in tiles no sum.
struct Linear {
  const uint32_t* weight;
  const float* bias;
  const float *scale, *sum;
  int32_t inputs, outputs;
};

struct LayerNorm {
  const float *weight, *bias;
};

struct Layer {
  Linear qkv, attention_out, ffn_up, ffn_down;
  LayerNorm attention_norm, ffn_norm;
};

struct Encoder {
  const float *word, *position, *type;
  LayerNorm embedding_norm;
  const Layer* layers;
  float eps;
  int32_t precision, activation, layer_count, hidden, intermediate, heads;
  int32_t is_tiled;  // for AMX
};

// The component of an adapter at one site: columns [inputs, rank + gates] down; up [rank + 1, outputs]
// for a bottleneck, the last row being its bias, and [output / kPanel][rank][kPanel] for LoRA. With
// `parts` the outputs are that many equal parts, and part i has the `part_rank` columns of low from
// `part_start[i]` on, or none where that is negative; the ups of those that have some stand one behind
// the other.
struct LowRank {
  const void* down;
  const float* bias;
  const void* up;
  int32_t rank, gates, lora_gates, parts, part_rank;
  int32_t part_start[3];
};

struct AdapterLayer {
  LowRank sites[kSites];
  const void *prefix_keys, *prefix_values;  // [prefix_length, hidden]
};

// One or two layers, the first with tanh, of what is read of a row's real tokens; `dense` is null
// where there is one. Without `outputs` the head gives what it reads.
struct AdapterHead {
  const float *dense, *dense_bias, *out, *out_bias;
  int32_t outputs, reading;
};

// What is `void` is fp16 where `is_half`, else fp32. AMX multiplies fp16 as sums of bf16; else the
// arithmetic is the same.
struct Adapter {
  const AdapterLayer* layers;
  AdapterHead head;
  const void* prompt;
  int32_t prefix_length, prefix_gates, activation, is_bottleneck_gated, is_half;
};

// Rows stand one behind the other; `ids` is -1 for a prompt vector, whose index is in `positions`.
// The real tokens of a row are those from `reals` on, its logits stand from `answers` on.
struct Batch {
  const Adapter* const* adapters;  // of each row
  const int32_t* starts;           // [rows + 1]
  const int32_t* row_of_token;
  const int32_t *ids, *positions, *types;
  const int32_t* reals;    // [rows]
  const int64_t* answers;  // [rows]
  int32_t rows, tokens, columns;  // columns: the most of any low-rank component, a multiple of 16
  int32_t most_keys;              // of any row, prefix included
  int32_t sites;                  // bit i: some adapter has a component at site i
};

// Where part i of `parts` begins when `total` is cut into parts that are equal to one.
inline int part_of(int total, int i, int parts) {
  return static_cast<int>(static_cast<int64_t>(total) * i / parts);
}

// Calls `work` with a null pointer to the numbers that the adapter is made of.
template <class Work>
inline void with_numbers_of(const Adapter& adapter, Work work) {
  if (adapter.is_half) return work(static_cast<const Half*>(nullptr));
  work(static_cast<const float*>(nullptr));
}

// As long as it lives, the thread takes numbers below 1.2e-38 for zero. Some units need a hundred
// cycles for one, and what a batch left behind, read where nobody looks, is full of them.
class NoSubnormals {
 public:
  NoSubnormals() : before_(_mm_getcsr()) {
    constexpr unsigned kResultsAreZero = 0x8000, kOperandsAreZero = 0x40;
    _mm_setcsr(before_ | kResultsAreZero | kOperandsAreZero);
  }
  ~NoSubnormals() { _mm_setcsr(before_); }
  NoSubnormals(const NoSubnormals&) = delete;
  NoSubnormals& operator=(const NoSubnormals&) = delete;

 private:
  const unsigned before_;
};

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// ---- functions of one number ---------------------------------------------------------------

// 2^n · p(r) with |r| ≤ ln 2 / 2; the relative error is below 2e-7.
// Where one operand of max or min is no number the second is returned: x stands there, to stay NaN.
inline Vec exponential(Vec x) {
  x = larger(all(-87.0f), smaller(all(88.0f), x));
  const Vec n = nearest_integer(x * all(1.44269504f));
  Vec r = subtract_product(n, all(0.693359375f), x);
  r = subtract_product(n, all(-2.12194440e-4f), r);
  Vec p = all(1.0f / 5040);
  p = multiply_add(p, r, all(1.0f / 720));
  p = multiply_add(p, r, all(1.0f / 120));
  p = multiply_add(p, r, all(1.0f / 24));
  p = multiply_add(p, r, all(1.0f / 6));
  p = multiply_add(p, r, all(0.5f));
  p = multiply_add(p, r, all(1.0f));
  p = multiply_add(p, r, all(1.0f));
  return scale_by_power(p, n);
}

inline Vec sigmoid(Vec x) {
  const Vec e = exponential(zeros() - x);
  return all(1.0f) / (all(1.0f) + e);
}

inline Vec hyperbolic_tangent(Vec x) {
  return multiply_subtract(all(2.0f), sigmoid(x + x), all(1.0f));
}

// Σ coefficients[i] xⁱ.
template <int count>
inline Vec polynomial(const float (&coefficients)[count], Vec x) {
  Vec sum = all(coefficients[count - 1]);
#pragma GCC unroll 8
  for (int i = count - 2; i >= 0; --i) sum = multiply_add(sum, x, all(coefficients[i]));
  return sum;
}

// erf(x / √2) as x P(x²) / Q(x²), fitted by weighted least squares up to 5.7, where it is 1; the
// absolute error is below 4e-7.
inline Vec gauss_error(Vec x) {
  constexpr float kP[] = {0.79788440f,    0.069876425f,   0.0094812578f,
                          3.5872313e-4f, 1.2747460e-5f, 4.3162178e-8f};
  constexpr float kQ[] = {1.0f,           0.25424257f,    0.029258952f,
                          0.0019443709f, 7.6756289e-5f, 1.1649521e-6f};
  x = larger(all(-5.7f), smaller(all(5.7f), x));
  const Vec square = x * x;
  const Vec p = polynomial(kP, square), q = polynomial(kQ, square);
  return x * p * inverse_of(q);
}

inline Vec activate(int32_t kind, Vec x) {
  const Vec half = x * all(0.5f);
  switch (kind) {
    case kRelu:
      return larger(zeros(), x);
    case kGelu:
      return multiply_add(half, gauss_error(x), half);
    case kSilu:
      return x * sigmoid(x);
    case kTanh:
      return hyperbolic_tangent(x);
    default: {
      const Vec cube = x * x * x;
      const Vec inner = multiply_add(cube, all(0.044715f), x);
      return multiply_add(half, hyperbolic_tangent(inner * all(0.79788456f)), half);
    }
  }
}

// ---- linear layers -------------------------------------------------------------------------

// How a token's words stand for its numbers: scale · word + least.
struct Scaling {
  float scale = 1.0f, least = 0.0f;
};

constexpr int kAllInputs = std::numeric_limits<int>::max();

// Who multiplies. Weights come from far for each block of tokens, so it is large; but what a block
// leaves behind should stay in the core's cache.
struct ByVectors {
  static constexpr bool kIsTiled = false;
  static constexpr int kChunk = kAllInputs;
  static constexpr int kBlock = 112 / kTile * kTile;  // tokens of a block at most
  static constexpr int kGroup = 84;                   // tokens of a group of rows, about
  static int padded(int words) { return words; }
};

// What the three precisions differ in: the words they multiply, and how a sum becomes a float.
struct Fp32 : ByVectors {
  using Sum = Vec;
  static constexpr int kInputs = 1;  // inputs of a word
  static constexpr int kPlanes = 1;  // words that say a number together
  static Sum zero() { return zeros(); }
  static Sum add(Sum sum, Words x, Words w) {
    return multiply_add(as_floats(x), as_floats(w), sum);
  }
  static Vec finish(const Linear&, int, const Scaling&, Sum sum) { return sum; }
};

// Calls `work` with each number below `count`, as a constant.
template <int count, class Work>
void each_constant(Work work) {
  if constexpr (count > 0) {
    each_constant<count - 1>(work);
    work(std::integral_constant<int, count - 1>{});
  }
}

// Calls `work` with a number from 1 to `most` as a constant.
template <int most, class Work>
void with_constant(int number, Work work) {
  if constexpr (most > 1) {
    if (number < most) return with_constant<most - 1>(number, work);
  }
  work(std::integral_constant<int, most>{});
}

// Asks for the line behind this one of a token's outputs, or of what is added to them: where each token
// has a page of its own the core does not guess it.
inline void fetch_next(const float* line) {
  asm volatile("prefetcht0 %0" ::"m"(*line));
}

// Asks for what is needed a little later. In assembly, as above, since compilers take a function that
// does nothing else for one that does nothing.
inline void fetch_all(const void* from, int64_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (const char* const stop = line + bytes; line < stop; line += 64) {
    asm volatile("prefetcht1 %0" ::"m"(*line));
  }
}

#ifdef __AVX512F__

using Ints [[gnu::vector_size(64)]] = int32_t;  // unlike __m512i it aliases nothing: sums stay in registers

struct Bf16 : ByVectors {
  using Sum = Vec;
  static constexpr int kInputs = 2;
  static constexpr int kPlanes = 1;
  static Sum zero() { return zeros(); }
  static Sum add(Sum sum, Words x, Words w) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
  }
  static Vec finish(const Linear&, int, const Scaling&, Sum sum) { return sum; }
  static Scaling convert(const float* from, int count, uint32_t* to, int) {
    for (int i = 0; i < count; i += kLanes) {
      const __m256bh half = _mm512_cvtneps_pbh(load(from + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i / 2), (__m256i)half);
    }
    return {};
  }
};

// A token's inputs are 0..255 between its own smallest and largest; a weight's are ±127, with a
// scale an output. So W x = scale_w (scale_x Σ w q + least_x Σ w). An input that is no number, or none
// that is finite, makes the token's scale none.
struct Int8 : ByVectors {
  using Sum = Ints;
  static constexpr int kInputs = 4;
  static constexpr int kPlanes = 1;
  static Sum zero() { return Ints{}; }
  static Sum add(Sum sum, Words x, Words w) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, x, w);
  }
  static Vec finish(const Linear& linear, int output, const Scaling& scaling, Sum sum) {
    const Vec product = _mm512_cvtepi32_ps((__m512i)sum) * all(scaling.scale);
    return multiply_add(product, load(linear.scale + output), all(scaling.least) * load(linear.sum + output));
  }
  static Scaling convert(const float* from, int count, uint32_t* to, int) {
    Vec most = load(from), least = most, none = most * zeros();
    for (int i = kLanes; i < count; i += kLanes) {
      const Vec x = load(from + i);
      most = larger(most, x);
      least = smaller(least, x);
      none = multiply_add(x, zeros(), none);  // which both of them may lose
    }
    const float low = _mm512_reduce_min_ps(least);
    const float range = std::max(largest_lane(most) - low, 1e-30f) + sum_of_lanes(none);
    const Vec inverse = all(255.0f / range);
    for (int i = 0; i < count; i += kLanes) {
      const Vec q = (load(from + i) - all(low)) * inverse;
      const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(q));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i / 4), bytes);
    }
    return {range / 255.0f, low};
  }
};

// ---- tiles of AMX --------------------------------------------------------------------------

struct ByTiles {
  static constexpr bool kIsTiled = true;
  static constexpr int kChunk = kAllInputs;
  static constexpr int kPlanes = 1;
  static constexpr int kLowPlanes = 1;      // bf16 that say a number of a low-rank product together
  static constexpr int kWidth = kPanel;     // outputs at a time
  static constexpr int kWeightTiles = 2;
  static constexpr int kSums = 1;           // of each token and output
  static constexpr int kBlock = 6 * kPair;
  static constexpr int kGroup = 6 * kPair;
  static int padded(int words) { return round_up(words, kRows); }
};

// Asks for cache lines that are needed soon, and moves on behind them.
inline void fetch(const uint32_t*& ahead, int lines) {
  for (int i = 0; i < lines; ++i, ahead += kLanes) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
  }
}

// Says how large the tiles are. The `sums` first ones are sums, the `weights` last ones weights, tokens
// are between; weights have a row for each word of a token, the others one for each token. A product
// takes as many cycles as there are tokens.
inline void shape_tiles(int weights, int tokens, int words = kRows, int sums = 4) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } shape;
  for (int i = 0; i < 8; ++i) {
    const bool is_sums = i < sums, is_weights = i >= 8 - weights;
    shape.bytes[i] = static_cast<uint16_t>(4 * (is_sums || is_weights ? kRows : words));
    shape.rows[i] = static_cast<uint8_t>(is_weights ? words : tokens);
  }
  configure_tiles(&shape);
}

inline void zero_tiles() {
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
}

constexpr int kLevels = 4;  // of worth that products of an fp32's bytes have: 1, 2⁻⁸, 2⁻¹⁶, 2⁻²⁴

// fp32 as integers of 24 bits, with a scale a token and a scale an output, whose three bytes are
// multiplied as int8 and summed up by worth as int32, without rounding. Of the nine products the last
// one, 2⁻³² of the whole, is left out. Source: Ootomo, Ozaki, Yokota, "DGEMM on Integer Matrix
// Multiplication Unit", 2024.
struct TiledFp32 : ByTiles {
  static constexpr int kLowPlanes = 3;
  static constexpr int kChunk = 1536;  // inputs at a time: a block's planes of them fit in a cache
  static constexpr int kGroup = 0;     // never: two threads that read the same weights wait less
  static constexpr int kInputs = 4;
  static constexpr int kPlanes = 3;
  static constexpr int kWidth = kRows;
  static constexpr int kWeightTiles = 3;
  static constexpr int kSums = kLevels;
  static constexpr float kMost = 8.355e6f;  // 127 (2¹⁶ + 2⁸ + 1), less what rounding may add
  static Vec finish(const Linear& linear, int output, const Scaling& scaling, const float* sums) {
    Vec total = zeros();
#pragma GCC unroll 4
    for (int level = kLevels - 1; level >= 0; --level) {
      const Vec sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + level * kPair * kWidth));
      total = multiply_add(total, all(0x1p-8f), sum);
    }
    return total * all(scaling.scale) * load(linear.scale + output);
  }
  // The largest is found among bits: there what is no number is largest, and stays.
  static Scaling convert(const float* from, int count, uint32_t* to, int plane) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), halves = _mm512_set1_epi32(0x808080);
    __m512i top = _mm512_castps_si512(all(1e-30f));
    for (int i = 0; i < count; i += kLanes) {
      top = _mm512_max_epu32(top, _mm512_and_si512(magnitude, _mm512_loadu_si512(from + i)));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(top);
    const float most = _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(bits))));
    const Vec inverse = all(kMost / most);
    for (int i = 0; i < count; i += kLanes) {
      const __m512i x = _mm512_cvtps_epi32(load(from + i) * inverse);
      // bytes from -128 to 127 whose sum is x: those of x + 0x808080, less 128 each
      const __m512i bytes = _mm512_xor_si512(_mm512_add_epi32(x, halves), halves);
      auto* words = reinterpret_cast<__m128i*>(to + i / kInputs);
      _mm_storeu_si128(words, _mm512_cvtepi32_epi8(_mm512_srli_epi32(bytes, 16)));
      words = reinterpret_cast<__m128i*>(to + plane + i / kInputs);
      _mm_storeu_si128(words, _mm512_cvtepi32_epi8(_mm512_srli_epi32(bytes, 8)));
      words = reinterpret_cast<__m128i*>(to + 2 * plane + i / kInputs);
      _mm_storeu_si128(words, _mm512_cvtepi32_epi8(bytes));
    }
    return {most / kMost * 0x1p16f, 0.0f};
  }
  // A plane of tokens meets all of the weights' while it is there.
  template <class Meanwhile>
  static void sum_up(const uint32_t* x, int64_t stride, int half, const uint32_t* w, int64_t words,
                     float* sums, Meanwhile meanwhile) {
    constexpr int kTokens = 4, kWeights0 = 5, kWeights1 = 6, kWeights2 = 7;
    for (int i = 0; i < 2; ++i, x += half * stride, sums += half * kWidth) {
      zero_tiles();
      const uint32_t* weights = w;
      for (int64_t word = 0; word < words; word += kRows) {
        load_tile<kWeights0>(weights, kWidth);
        load_tile<kWeights1>(weights += kRows * kWidth, kWidth);
        load_tile<kWeights2>(weights += kRows * kWidth, kWidth);
        weights += kRows * kWidth;
        load_tile<kTokens>(x + word, stride);
        add_signed_tile<2, kTokens, kWeights2>();
        add_signed_tile<1, kTokens, kWeights1>();
        add_signed_tile<0, kTokens, kWeights0>();
        load_tile<kTokens>(x + words + word, stride);
        add_signed_tile<3, kTokens, kWeights2>();
        add_signed_tile<2, kTokens, kWeights1>();
        add_signed_tile<1, kTokens, kWeights0>();
        load_tile<kTokens>(x + 2 * words + word, stride);
        add_signed_tile<3, kTokens, kWeights1>();
        add_signed_tile<2, kTokens, kWeights0>();
        meanwhile();
      }
      store_tile<0>(sums, kWidth);
      store_tile<1>(sums + kPair * kWidth, kWidth);
      store_tile<2>(sums + 2 * kPair * kWidth, kWidth);
      store_tile<3>(sums + 3 * kPair * kWidth, kWidth);
    }
  }
};

// One plane: two tiles of tokens by two of weights.
template <class Multiply, class Meanwhile>
void sum_up_pair(const uint32_t* x, int64_t stride, int half, const uint32_t* w, int64_t words,
                 float* sums, Multiply multiply, Meanwhile meanwhile) {
  zero_tiles();
  for (int64_t word = 0; word < words; word += kRows, w += kRows * kPanel) {
    load_tile<4>(x + word, stride);
    load_tile<5>(x + word + half * stride, stride);
    load_tile<6>(w, kPanel);
    load_tile<7>(w + kLanes, kPanel);
    multiply();
    meanwhile();
  }
  store_tile<0>(sums, kPanel);
  store_tile<1>(sums + kLanes, kPanel);
  store_tile<2>(sums + half * kPanel, kPanel);
  store_tile<3>(sums + half * kPanel + kLanes, kPanel);
}

struct TiledBf16 : ByTiles {
  static constexpr int kInputs = Bf16::kInputs;
  static constexpr auto convert = Bf16::convert;
  static Vec finish(const Linear&, int, const Scaling&, const float* sums) { return load(sums); }
  template <class Meanwhile>
  static void sum_up(const uint32_t* x, int64_t stride, int half, const uint32_t* w, int64_t words,
                     float* sums, Meanwhile meanwhile) {
    const auto multiply = [] {
      add_bf16_tile<0, 4, 6>();
      add_bf16_tile<1, 4, 7>();
      add_bf16_tile<2, 5, 6>();
      add_bf16_tile<3, 5, 7>();
    };
    sum_up_pair(x, stride, half, w, words, sums, multiply, meanwhile);
  }
};

struct TiledInt8 : ByTiles {
  static constexpr int kInputs = Int8::kInputs;
  static constexpr auto convert = Int8::convert;
  static Vec finish(const Linear& linear, int output, const Scaling& scaling, const float* sums) {
    return Int8::finish(linear, output, scaling, (Ints)_mm512_loadu_si512(sums));
  }
  template <class Meanwhile>
  static void sum_up(const uint32_t* x, int64_t stride, int half, const uint32_t* w, int64_t words,
                     float* sums, Meanwhile meanwhile) {
    const auto multiply = [] {
      add_int8_tile<0, 4, 6>();
      add_int8_tile<1, 4, 7>();
      add_int8_tile<2, 5, 6>();
      add_int8_tile<3, 5, 7>();
    };
    sum_up_pair(x, stride, half, w, words, sums, multiply, meanwhile);
  }
};

#endif

// ---- products of blocks of tokens ----------------------------------------------------------

// Tokens as words; `stride` counts words from token to token.
struct Operand {
  const uint32_t* words;
  int stride;
  const Scaling* scalings;
};

// What follows the product: + bias, + low-rank components, activation, + residual.
struct Epilogue {
  float* out;
  int out_stride;
  const float* residual;  // of `out_stride` too, or null
  int activation;         // or -1
  const Batch* batch;     // null where no adapter has a component here
  int first_token, layer, site;
  const float* coefficients;  // [token of the batch, columns]
  bool is_fp16_done = false;  // LoRA of fp16 is in the outputs before the product is
};

// Up to where outputs have been looked after before the product, and whether `out` has something for
// them: bias and LoRA.
struct Begun {
  int stop;
  bool is_there;
};

// y[i][..] += coefficients[i] · up, for tokens of one adapter; `up` has `rows` rows of a panel.
template <int tokens, int vectors, class Number>
void raise_panel(const Number* up, int rows, const float* coefficients, int columns,
                 float (*y)[kPanel]) {
  Vec sums[tokens][vectors];
#pragma GCC unroll 6
  for (int t = 0; t < tokens; ++t) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sums[t][v] = load(y[t] + v * kLanes);
  }
  for (int r = 0; r < rows; ++r, up += kPanel) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const Vec row = load(up + v * kLanes);
#pragma GCC unroll 6
      for (int t = 0; t < tokens; ++t) {
        sums[t][v] = multiply_add(all(coefficients[t * columns + r]), row, sums[t][v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < tokens; ++t) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(y[t] + v * kLanes, sums[t][v]);
  }
}

template <int tokens, class Number>
void raise_panel_any(const Number* up, int rows, const float* coefficients, int columns, int vectors,
                     int count, float (*y)[kPanel]) {
  if constexpr (tokens > 0) {
    if (count < tokens) {
      return raise_panel_any<tokens - 1>(up, rows, coefficients, columns, vectors, count, y);
    }
    if (vectors == kVectors) return raise_panel<tokens, kVectors>(up, rows, coefficients, columns, y);
    raise_panel<tokens, 1>(up, rows, coefficients, columns, y);
  }
}

// Adds the low-rank components of a tile's tokens, adapter by adapter.
void add_low_rank(const Epilogue& after, int outputs, int first, int tokens, int output, int vectors,
                  float (*y)[kPanel]) {
  constexpr int kTokens = 6;
  const Batch& batch = *after.batch;
  const int32_t* rows = batch.row_of_token + after.first_token + first;
  for (int t = 0; t < tokens;) {
    const Adapter* adapter = batch.adapters[rows[t]];
    int stop = t + 1;
    while (stop < tokens && batch.adapters[rows[stop]] == adapter) ++stop;
    const LowRank& part = adapter->layers[after.layer].sites[after.site];
    const bool is_to_do = part.up && !(after.is_fp16_done && adapter->is_half);
    int begin = 0, count = is_to_do ? part.rank : 0;
    int64_t at_up = 0;
    int within = output;
    if (count && part.parts) {  // whole panels: the hidden size is a multiple of kPanel
      const int each = outputs / part.parts;
      begin = part.part_start[output / each];
      count = begin < 0 ? 0 : part.part_rank;
      at_up = static_cast<int64_t>(begin) * each;
      within = output % each;
    }
    at_up += within / kPanel * kPanel * count + within % kPanel;
    const int steps = count ? (stop - t + kTokens - 1) / kTokens : 0;
    with_numbers_of(*adapter, [&](auto numbers) {
      const auto* up = static_cast<decltype(numbers)>(part.up) + at_up;
      for (int i = 0; i < steps; ++i) {
        const int at = t + part_of(stop - t, i, steps), end = t + part_of(stop - t, i + 1, steps);
        const int64_t token = after.first_token + first + at;
        raise_panel_any<kTokens>(up, count, after.coefficients + token * batch.columns + begin,
                                 batch.columns, vectors, end - at, y + at);
      }
    });
    t = stop;
  }
}

// Activation, + residual, and out.
inline void put(const Epilogue& after, int64_t place, Vec x) {
  if (after.activation >= 0) x = activate(after.activation, x);
  if (after.residual) x = x + load(after.residual + place);
  store(after.out + place, x);
}

// Not inlined: the registers of the product's loop stay free of it.
__attribute__((noinline)) void finish_tile(const Linear& linear, const Epilogue& after, int first,
                                           int tokens, int output, int vectors,
                                           float (*y)[kPanel]) {
  if (after.batch) add_low_rank(after, linear.outputs, first, tokens, output, vectors, y);
  for (int t = 0; t < tokens; ++t) {
    const int64_t place = static_cast<int64_t>(first + t) * after.out_stride + output;
    for (int v = 0; v < vectors; ++v) put(after, place + v * kLanes, load(y[t] + v * kLanes));
  }
}

// Meanwhile it fetches what stands `ahead` words behind the weights it multiplies.
template <class Format, int tokens>
void project_tile(const Linear& linear, const Operand& x, int first, int output, int64_t ahead,
                  const Epilogue& after) {
  const int words = linear.inputs / Format::kInputs;
  const uint32_t* weight = linear.weight + static_cast<int64_t>(output) * words;
  const uint32_t* const stop = weight + static_cast<int64_t>(words) * kPanel;
  // a pointer for every third token: the two after it are one and two strides further, which an
  // address can say by itself
  constexpr int kBases = (tokens + 2) / 3;
  const int64_t stride = x.stride;
  const uint32_t* inputs[kBases];
#pragma GCC unroll 14
  for (int i = 0; i < kBases; ++i) inputs[i] = x.words + (first + 3 * i) * stride;
  typename Format::Sum sums[tokens][kVectors];
#pragma GCC unroll 14
  for (int t = 0; t < tokens; ++t) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[t][v] = Format::zero();
  }
  for (; weight != stop; weight += kPanel) {
    Words w[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) w[v] = load_words(weight + v * kLanes);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      _mm_prefetch(reinterpret_cast<const char*>(weight + ahead + v * kLanes), _MM_HINT_T0);
    }
#pragma GCC unroll 14
    for (int t = 0; t < tokens; ++t) {
      const Words word = all_words(inputs[t / 3][t % 3 * stride]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[t][v] = Format::add(sums[t][v], word, w[v]);
    }
#pragma GCC unroll 14
    for (int i = 0; i < kBases; ++i) ++inputs[i];
  }
  alignas(64) float y[tokens][kPanel];
#pragma GCC unroll 14
  for (int t = 0; t < tokens; ++t) {
    const Scaling scaling = Format::kInputs > 1 ? x.scalings[first + t] : Scaling{};
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const int place = output + v * kLanes;
      const Vec product = Format::finish(linear, place, scaling, sums[t][v]);
      store(y[t] + v * kLanes, product + load(linear.bias + place));
    }
  }
  const int vectors = std::min(kVectors, (linear.outputs - output) / kLanes);
  finish_tile(linear, after, first, tokens, output, vectors, y);
}

template <class Format, int tokens>
void project_any(const Linear& linear, const Operand& x, int first, int count, int output,
                 int64_t ahead, const Epilogue& after) {
  if constexpr (tokens > 0) {
    if (count < tokens) {
      return project_any<Format, tokens - 1>(linear, x, first, count, output, ahead, after);
    }
    project_tile<Format, tokens>(linear, x, first, output, ahead, after);
  }
}

// Tiles are equal to a token: a short last one would wait for its few sums. The last one fetches
// the next panel, so that memory does not rest while tiles find the panel in a cache.
template <class Format>
void project(const Linear& linear, const Operand& x, int tokens, const Epilogue& after) {
  const int tiles = (tokens + kTile - 1) / kTile;
  const int64_t panel = static_cast<int64_t>(linear.inputs / Format::kInputs) * kPanel;
  for (int output = 0; output < linear.outputs; output += kPanel) {
    for (int i = 0; i < tiles; ++i) {
      const int first = part_of(tokens, i, tiles), stop = part_of(tokens, i + 1, tiles);
      const int64_t ahead = i > 0 && i + 1 == tiles ? panel : 0;
      project_any<Format, kTile>(linear, x, first, stop - first, output, ahead, after);
    }
  }
}

// ---- small parts ---------------------------------------------------------------------------

// Sum of what `each` gives for every 16 numbers, in several sums at a time: one would wait for itself.
template <class Each>
float sum_of(int count, Each each) {
  constexpr int kSums = 4;
  Vec sums[kSums];
  for (Vec& sum : sums) sum = zeros();
  int i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
    for (int s = 0; s < kSums; ++s) sums[s] = each(i + s * kLanes, sums[s]);
  }
  for (; i < count; i += kLanes) sums[0] = each(i, sums[0]);
  const Vec halves = sums[0] + sums[1] + (sums[2] + sums[3]);
  return sum_of_lanes(halves);
}

void normalize(const LayerNorm& norm, float eps, int hidden, const float* x, float* y) {
  const auto count = static_cast<float>(hidden);
  const Vec mean = all(
      sum_of(hidden, [&](int i, Vec sum) { return sum + load(x + i); }) / count);
  const float squares = sum_of(hidden, [&](int i, Vec sum) {
    const Vec d = load(x + i) - mean;
    return multiply_add(d, d, sum);
  });
  const Vec inverse = all(1.0f / std::sqrt(squares / count + eps));
  for (int i = 0; i < hidden; i += kLanes) {
    const Vec d = (load(x + i) - mean) * inverse;
    store(y + i, multiply_add(d, load(norm.weight + i), load(norm.bias + i)));
  }
}

// y = x Wᵀ + b for tokens that stand `x_stride` and `y_stride` apart.
template <int tokens>
void apply(const float* weight, const float* bias, int outputs, int inputs, const float* x,
           int64_t x_stride, float* y, int64_t y_stride) {
  for (int o = 0; o < outputs; ++o, weight += inputs) {
    Vec sums[tokens];
    for (int t = 0; t < tokens; ++t) sums[t] = zeros();
    for (int i = 0; i < inputs; i += kLanes) {
      const Vec w = load(weight + i);
      for (int t = 0; t < tokens; ++t) {
        sums[t] = multiply_add(load(x + t * x_stride + i), w, sums[t]);
      }
    }
    for (int t = 0; t < tokens; ++t) y[t * y_stride + o] = sum_of_lanes(sums[t]) + bias[o];
  }
}

// Passes a token's columns of gates through the logistic function.
inline void open_gates(const LowRank& part, float* low) {
  const int width = part.rank + part.gates;
  for (int g = part.rank; g < width; g += kLanes) {
    const Mask mask = first_lanes(width - g);
    store(mask, low + g, sigmoid(load(mask, low + g)));
  }
}

// low[t] = x[t] down + bias; the gates' columns pass through the logistic function.
template <class Number, int tokens>
void lower_tile(const LowRank& part, int inputs, const float* x, int x_stride, float* low,
                int columns) {
  const int width = part.rank + part.gates;
  for (int column = 0; column < width; column += kPanel) {
    const int left = width - column;
    const Number* down = static_cast<const Number*>(part.down) + column;
    Mask lanes[kVectors];
    for (int v = 0; v < kVectors; ++v) lanes[v] = first_lanes(left - v * kLanes);
    Vec sums[tokens][kVectors];
    for (int t = 0; t < tokens; ++t) {
      for (int v = 0; v < kVectors; ++v) {
        sums[t][v] = load(lanes[v], part.bias + column + v * kLanes);
      }
    }
    for (int k = 0; k < inputs; ++k, down += width) {
      Vec row[kVectors];
      for (int v = 0; v < kVectors; ++v) row[v] = load(lanes[v], down + v * kLanes);
      for (int t = 0; t < tokens; ++t) {
        const Vec value = all(x[t * x_stride + k]);
        for (int v = 0; v < kVectors; ++v) sums[t][v] = multiply_add(value, row[v], sums[t][v]);
      }
    }
    for (int t = 0; t < tokens; ++t) {
      for (int v = 0; v < kVectors && column + v * kLanes < columns; ++v) {
        store(low + t * columns + column + v * kLanes, sums[t][v]);
      }
    }
  }
  for (int t = 0; t < tokens; ++t) open_gates(part, low + t * columns);
}

template <class Number, int tokens>
void lower_rest(const LowRank& part, int count, int inputs, const float* x, int x_stride,
                float* low, int columns) {
  if constexpr (tokens > 0) {
    if (count == tokens) return lower_tile<Number, tokens>(part, inputs, x, x_stride, low, columns);
    lower_rest<Number, tokens - 1>(part, count, inputs, x, x_stride, low, columns);
  }
}

#ifdef __AVX512F__

// ---- products by AMX -----------------------------------------------------------------------

// Which inputs of a linear layer are multiplied; the sums of those before stand in the output.
struct Chunk {
  int start, stop, inputs;

  bool is_first() const { return start == 0; }
  bool is_last() const { return stop == inputs; }
};

// What becomes of a pair of tiles after AMX has summed it up, some tokens at a time: the other units
// of the core do it while AMX multiplies the next pair.
template <class Format>
class Rest {
 public:
  Rest(const Linear& linear, const Chunk& chunk, const Operand& x, const Epilogue& after)
      : linear_(linear), chunk_(chunk), x_(x), after_(after) {}

  // Where the sums of the next pair go.
  float* next() { return sums_[which_ ^ 1]; }

  // Takes them, of which `tokens` are left to do.
  void take(int first, int tokens, int output, bool has_begun) {
    which_ ^= 1;
    first_ = first, tokens_ = tokens, output_ = output, has_begun_ = has_begun, done_ = 0;
  }

  // Sees to it that of the tokens the share `part / parts` is done, or the few that wait for more.
  void advance(int part, int parts) {
    constexpr int kFew = 6;
    const int due = part_of(tokens_, part, parts);
    if (due - done_ >= kFew || part == parts) finish(due);
  }

 private:
  __attribute__((noinline)) void finish(int stop) {
    if (stop == done_) return;
    constexpr int kWidth = Format::kWidth;
    const int count = stop - done_, stride = after_.out_stride;
    const int vectors = std::min(kWidth, linear_.outputs - output_) / kLanes;
    const bool is_plain = chunk_.is_last() && !after_.batch;
    const float* sums = sums_[which_] + done_ * kWidth;
    int64_t place = static_cast<int64_t>(first_ + done_) * stride + output_;
    alignas(64) float y[kPair][kPanel];
    for (int t = 0; t < count; ++t, sums += kWidth, place += stride) {
      for (int v = 0; v < vectors; ++v) {
        const int i = v * kLanes;
        float* out = after_.out + place + i;
        fetch_next(out + kWidth);
        if (after_.residual) fetch_next(after_.residual + place + i + kWidth);
        Vec x = Format::finish(linear_, output_ + i, x_.scalings[first_ + done_ + t], sums + i);
        x = x + load(has_begun_ ? out : linear_.bias + output_ + i);
        if (is_plain) {
          put(after_, place + i, x);
        } else {
          store(chunk_.is_last() ? y[t] + i : out, x);
        }
      }
    }
    if (chunk_.is_last() && after_.batch) {
      finish_tile(linear_, after_, first_ + done_, count, output_, vectors, y);
    }
    done_ = stop;
  }

  const Linear& linear_;
  const Chunk& chunk_;
  const Operand& x_;
  const Epilogue& after_;
  int which_ = 0, first_ = 0, tokens_ = 0, output_ = 0, done_ = 0;
  bool has_begun_ = false;
  alignas(64) float sums_[2][Format::kSums * kPair * Format::kWidth];
};

// While a panel of weights is multiplied, 32 tokens or less at a time, the next one is on its way,
// and so is the rest of the tokens before. Where tokens are odd, there is one more behind the last,
// which nobody looks at. `begin` looks after outputs from one on, and says up to where.
template <class Format, class Begin>
void project_by_amx(const Linear& linear, const Chunk& chunk, const Operand& x, int tokens,
                    const Epilogue& after, Begin begin) {
  constexpr int kWidth = Format::kWidth;
  const auto words_of = [](int inputs) -> int64_t { return Format::padded(inputs / Format::kInputs); };
  const auto weights_of = [&](int inputs) { return words_of(inputs) * Format::kPlanes * kWidth; };
  const int64_t words = words_of(chunk.stop - chunk.start), panel = weights_of(linear.inputs);
  const int pairs = (tokens + kPair - 1) / kPair;
  const int turns = static_cast<int>(words) / kRows * (kPanel / kWidth);
  constexpr int kLines = Format::kPlanes * kWidth * kWidth / kPanel;  // of weights a turn
  const int lines = (kLines + pairs - 1) / pairs;
  const uint32_t* weight = linear.weight + weights_of(chunk.start);
  Rest<Format> rest(linear, chunk, x, after);
  int shaped = 0;
  Begun begun{chunk.is_first() ? 0 : linear.outputs, !chunk.is_first()};
  for (int output = 0; output < linear.outputs; output += kWidth, weight += panel) {
    const uint32_t* ahead = weight + panel;
    if (output == begun.stop) {
      begun = begin(output);
      shaped = 0;
    }
    for (int i = 0; i < pairs; ++i) {
      const int first = part_of(tokens, i, pairs), count = part_of(tokens, i + 1, pairs) - first;
      const int half = (count + 1) / 2;
      if (half != shaped) shape_tiles(Format::kWeightTiles, half);
      shaped = half;
      int turn = 0;
      Format::sum_up(x.words + static_cast<int64_t>(first) * x.stride, x.stride, half, weight, words,
                     rest.next(), [&] {
                       fetch(ahead, lines);
                       rest.advance(++turn, turns);
                     });
      rest.advance(1, 1);
      rest.take(first, count, output, begun.is_there);
    }
  }
  rest.advance(1, 1);
}

// ---- low-rank components by AMX -------------------------------------------------------------

// An adapter's weights become bf16 when they are needed: they are read once from far, one behind the
// other, and multiplied while they are near. With several planes an fp16 weight is the sum of two
// bf16, exactly, and a token's number of three; what is left out is 2⁻²⁴ of the whole.

constexpr int kLowTiles = 3;                   // tiles of tokens at a time
constexpr int kLowColumns = 2;                 // and of outputs
constexpr int kLowTokens = kLowTiles * kRows;  // tokens at a time
constexpr int kTileWords = kRows * kRows;
constexpr int kStep = 2 * kRows;               // inputs of a tile of bf16

constexpr int weight_planes(int planes) { return std::min(planes, 2); }

// The products that make up the whole: this plane of a token's number by that of a weight, which count
// less than `planes` together.
struct Term {
  int token, weight;
};
constexpr Term kTerms[] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}, {2, 0}};

constexpr int terms_of(int planes) { return planes == 1 ? 1 : 5; }

// Words of two bf16, `low` in the lower half: the numbers to the nearest, or as the sum of several
// planes, each of which says what those before it lack.
template <int planes>
void pair_numbers(Vec low, Vec high, __m512i (&words)[planes]) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
#pragma GCC unroll 3
  for (int p = 0; p < planes; ++p) {
    const bool is_exact = planes > 1 && p + 1 == planes;
    const __m512i half = _mm512_set1_epi32(is_exact ? 0 : 0x8000);
    const __m512i below = _mm512_add_epi32(_mm512_castps_si512(low), half);
    const __m512i above = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(high), half), upper);
    words[p] = _mm512_or_si512(_mm512_srli_epi32(below, 16), above);
    low = low - _mm512_castsi512_ps(_mm512_and_si512(below, upper));
    high = high - _mm512_castsi512_ps(above);
  }
}

// Makes tiles [output / kRows][plane] of down's weights for a step of inputs; what is beyond is 0. A
// word is an input's and that of the one kRows behind it.
template <int planes>
void pair_down(const Half* down, int inputs, int outputs, int first, uint32_t* to) {
  const auto row = [&](int input, int output) {
    const Mask lanes = input < inputs ? first_lanes(outputs - output) : 0;
    return load(lanes, down + static_cast<int64_t>(input) * outputs + output);
  };
  for (int input = first; input < first + kRows; ++input, to += kRows) {
    uint32_t* tile = to;
    for (int output = 0; output < outputs; output += kRows) {
      __m512i words[planes];
      pair_numbers(row(input, output), row(input + kRows, output), words);
      for (int p = 0; p < planes; ++p, tile += kTileWords) _mm512_storeu_si512(tile, words[p]);
    }
  }
}

// How an up with so many rows is multiplied: its terms stand one behind the other as further inputs of
// one product of bf16, so that their sum takes few steps. With four rows and five terms a token is
// [x0 x0 x1 x1 x2], four numbers each, and a column of weights [w0 w1 w0 w1 w0]. A word is a row's
// number and that of the one `pairs` behind it.
struct Raising {
  int pairs;         // words of a term
  int steps, words;  // steps of so many words make up a token

  Raising(int rows, int terms) {
    pairs = (rows + 1) / 2;
    const int all = terms * pairs;
    steps = (all + kRows - 1) / kRows;
    words = (all + steps - 1) / steps;
  }
};

// Makes tiles [step][column] of up's weights for columns of outputs from one on; `at` gives the place of
// a row and an output.
template <int planes, class At>
void pair_up(const Raising& raising, int rows, int output, int columns, At at, uint32_t* to) {
  const int pairs = raising.pairs;
  const auto place = [&](int word) {
    return to + word / raising.words * columns * kTileWords + word % raising.words * kRows;
  };
  for (int pair = 0; pair < pairs; ++pair) {
    const Mask is_there = pair + pairs < rows ? 0xffff : 0;
    for (int c = 0; c < columns; ++c) {
      __m512i words[weight_planes(planes)];
      const int first = output + c * kRows;
      pair_numbers(load(at(pair, first)), load(is_there, at(pair + pairs, first)), words);
#pragma GCC unroll 5
      for (int term = 0; term < terms_of(planes); ++term) {
        uint32_t* tile = place(term * pairs + pair) + c * kTileWords;
        _mm512_storeu_si512(tile, words[kTerms[term].weight]);
      }
    }
  }
  for (int word = terms_of(planes) * pairs; word < raising.steps * raising.words; ++word) {
    for (int c = 0; c < columns; ++c) {
      _mm512_storeu_si512(place(word) + c * kTileWords, _mm512_setzero_si512());
    }
  }
}

// Splits up a step of inputs, of which so many are `left`, into [plane][kLowTokens][word].
template <int planes>
void split_step(const float* from, int64_t stride, int left, int tokens, uint32_t* to) {
  const Mask has_high = left > kRows ? 0xffff : 0;
  for (int t = 0; t < tokens; ++t, from += stride, to += kRows) {
    __m512i words[planes];
    pair_numbers(load(from), load(has_high, from + kRows), words);
    for (int p = 0; p < planes; ++p) _mm512_storeu_si512(to + p * kLowTokens * kRows, words[p]);
  }
}

// Tokens that were split up into words, and how far apart they are.
struct SplitTokens {
  const uint32_t* words;
  int64_t token, plane, step;
};

// Some columns of weights as tiles [step][column][plane], with `next` words from one step to the next.
struct SplitWeights {
  const uint32_t* words;
  int64_t next;
  int steps;
};

// sums[column][tile][row][..] = tiles of tokens times columns of weights. Calls `prepare` for each step
// while the one before it is multiplied. Registers: 0 to 5 sums, 6 tokens, 7 weights.
template <int tiles, int columns, int planes, class Prepare>
void sum_up_low(const SplitTokens& x, int rows, const SplitWeights& w, float* sums, Prepare prepare) {
  const int64_t token = x.token, next_plane = x.plane, next_tile = rows * token;
  each_constant<tiles * columns>([](auto sum) { zero_tile<decltype(sum)::value>(); });
  prepare(0);
  for (int step = 0; step < w.steps; ++step) {
    if (step + 1 < w.steps) prepare(step + 1);
    const uint32_t *tokens = x.words + step * x.step, *weights = w.words + step * w.next;
    each_constant<columns>([&](auto column) {
      each_constant<weight_planes(planes)>([&](auto weight) {
        load_tile<7>(weights, kRows);
        weights += kTileWords;
        each_constant<planes - weight>([&](auto plane) {
          each_constant<tiles>([&](auto tile) {
            load_tile<6>(tokens + plane * next_plane + tile * next_tile, token);
            add_bf16_tile<decltype(column)::value * tiles + decltype(tile)::value, 6, 7>();
          });
        });
      });
    });
  }
  each_constant<tiles * columns>([&](auto sum) {
    store_tile<decltype(sum)::value>(sums + sum * kTileWords, kRows);
  });
}

// Multiplies up to kLowTokens tokens by up to kLowColumns columns, with tiles of `rows` tokens; `take`
// gets a token, a column, and their 16 sums.
template <int planes, class Prepare, class Take>
void multiply_low(const SplitTokens& x, int tokens, int rows, const SplitWeights& w, int columns,
                  Prepare prepare, Take take) {
  alignas(64) float sums[kLowTiles * kLowColumns * kTileWords];
  const int tiles = (tokens + rows - 1) / rows;
  with_constant<kLowTiles>(tiles, [&](auto high) {
    with_constant<kLowColumns>(columns, [&](auto wide) {
      sum_up_low<decltype(high)::value, decltype(wide)::value, planes>(x, rows, w, sums, prepare);
    });
  });
  for (int tile = 0; tile < tiles; ++tile) {
    const float* from = sums + tile * kTileWords;
    const int stop = std::min((tile + 1) * rows, tokens);
    for (int t = tile * rows; t < stop; ++t, from += kRows) {
      for (int c = 0; c < columns; ++c) take(t, c, load(from + c * tiles * kTileWords));
    }
  }
}

// x down for tokens of one adapter; `space` is for kLowTokens of them, `weights` for those of down,
// which are fetched `kAhead` bytes ahead.
template <int planes, class Take>
void lower_by_tiles(const Half* down, int inputs, int outputs, const float* x, int64_t x_stride,
                    int tokens, uint32_t* space, uint32_t* weights, Take take) {
  constexpr int kAhead = 2048, kWeightPlanes = weight_planes(planes);
  const int steps = (inputs + kStep - 1) / kStep, columns = (outputs + kRows - 1) / kRows;
  const int64_t step_bytes = static_cast<int64_t>(kStep) * outputs * sizeof(Half);
  const SplitTokens split{space, kRows, kLowTokens * kRows, planes * kLowTokens * kRows};
  const int64_t next = static_cast<int64_t>(columns) * kWeightPlanes * kTileWords;
  const int parts = (tokens + kLowTokens - 1) / kLowTokens;
  fetch_all(down, kAhead);
  for (int part = 0; part < parts; ++part) {
    const int first = part_of(tokens, part, parts), count = part_of(tokens, part + 1, parts) - first;
    const int tiles = (count + kRows - 1) / kRows, rows = (count + tiles - 1) / tiles;
    shape_tiles(1, rows, kRows, kLowTiles * kLowColumns);
    const auto prepare = [&](int step) {
      const int input = step * kStep;
      if (first == 0) {
        fetch_all(reinterpret_cast<const char*>(down) + kAhead + step * step_bytes, step_bytes);
        pair_down<kWeightPlanes>(down, inputs, outputs, input, weights + step * next);
      }
      uint32_t* to = space + step * split.step;
      split_step<planes>(x + first * x_stride + input, x_stride, inputs - input, count, to);
    };
    for (int c = 0; c < columns; c += kLowColumns) {
      const SplitWeights some{weights + c * kWeightPlanes * kTileWords, next, steps};
      multiply_low<planes>(
          split, count, rows, some, std::min(kLowColumns, columns - c),
          [&](int step) {
            if (c == 0) prepare(step);
          },
          [=](int t, int column, Vec sum) { take(first + t, (c + column) * kRows, sum); });
    }
  }
}

// low up for tokens of one adapter, with `rows` rows of up; `number` gives a token's 16 columns of low
// from one on, `at` the place of a row and an output of up. `space` is for all tokens and what a last
// tile reads behind them, `weights` for those of up.
template <int planes, class Number, class At, class Take>
void raise_by_tiles(int rows, int outputs, int tokens, uint32_t* space, uint32_t* weights,
                    Number number, At at, Take take) {
  constexpr int kParts = terms_of(planes);
  const Raising raising(rows, kParts);
  const int64_t stride = raising.steps * raising.words + kPad;
  uint32_t* to = space;
  for (int t = 0; t < tokens; ++t, to += stride) {
    for (int i = 0; i < raising.pairs; i += kLanes) {
      const Mask is_there = first_lanes(raising.pairs - i);
      __m512i words[planes];
      pair_numbers(number(t, i), number(t, i + raising.pairs), words);
#pragma GCC unroll 5
      for (int term = 0; term < kParts; ++term) {
        uint32_t* place = to + term * raising.pairs + i;
        _mm512_mask_storeu_epi32(place, is_there, words[kTerms[term].token]);
      }
    }
    std::fill(to + kParts * raising.pairs, to + raising.steps * raising.words, 0);
  }
  const int tiles = (tokens + kRows - 1) / kRows, tile_rows = (tokens + tiles - 1) / tiles;
  const int most = kLowTiles * tile_rows, columns = outputs / kRows;
  const int64_t next = static_cast<int64_t>(raising.steps) * kLowColumns * kTileWords;
  shape_tiles(1, tile_rows, raising.words, kLowTiles * kLowColumns);
  const auto count_of = [&](int c) { return std::min(kLowColumns, columns - c); };
  // nobody asks again for weights that all tokens have met at once: two places for them stay near
  const auto place_of = [&](int c) {
    const int group = c / kLowColumns;
    return weights + (tokens > most ? group : group % 2) * next;
  };
  const auto pair = [&](int c) {
    if (c < columns) pair_up<planes>(raising, rows, c * kRows, count_of(c), at, place_of(c));
  };
  pair(0);
  for (int first = 0; first < tokens; first += most) {
    const SplitTokens split{space + first * stride, stride, 0, raising.words};
    for (int c = 0; c < columns; c += kLowColumns) {
      if (first == 0) pair(c + kLowColumns);
      const SplitWeights some{place_of(c), count_of(c) * kTileWords, raising.steps};
      multiply_low<1>(split, std::min(most, tokens - first), tile_rows, some, count_of(c), [](int) {},
                      [=](int t, int column, Vec sum) { take(first + t, (c + column) * kRows, sum); });
    }
  }
}

#endif

// ---- attention -----------------------------------------------------------------------------

struct AttentionSpace {
  float *keys, *values, *scores;  // [size, padded keys], [keys, size], [kQueries, padded keys]
};

// One head of one row: `keys` of them, `padded` to whole vectors.
struct Head {
  const float* queries;
  float* out;
  int query_stride, out_stride;
  int keys, padded, size;
  AttentionSpace space;
};

// scores[i][key ..] = q[i] · k[key]; what is behind the last key becomes as good as -inf.
template <int queries, int vectors>
void score_tile(const Head& head, int first, int key) {
  const float* q = head.queries + static_cast<int64_t>(first) * head.query_stride;
  const int stride = head.query_stride;
  Vec sums[queries][vectors];
#pragma GCC unroll 6
  for (int i = 0; i < queries; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[i][v] = zeros();
  }
  const float* k = head.space.keys + key;
  for (int d = 0; d < head.size; ++d, k += head.padded) {
    Vec columns[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) columns[v] = load(k + v * kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < queries; ++i) {
      const Vec x = all(q[i * stride + d]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[i][v] = multiply_add(x, columns[v], sums[i][v]);
    }
  }
  const Mask mask = first_lanes(head.keys - key - (vectors - 1) * kLanes);
  float* scores = head.space.scores + key;
#pragma GCC unroll 6
  for (int i = 0; i < queries; ++i) {
    sums[i][vectors - 1] = choose(mask, sums[i][vectors - 1], all(-1e30f));
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(scores + i * head.padded + v * kLanes, sums[i][v]);
  }
}

template <int queries>
void score(const Head& head, int first) {
  int key = 0;
  for (; key + kWide * kLanes <= head.padded; key += kWide * kLanes) {
    score_tile<queries, kWide>(head, first, key);
  }
  if (key == head.padded) return;
  with_constant<kWide>((head.padded - key) / kLanes, [&](auto vectors) {
    score_tile<queries, decltype(vectors)::value>(head, first, key);
  });
}

// scores = exp((scores - max) / √size); returns one over each query's sum of them.
template <int queries>
void soften(const Head& head, Vec (&inverse)[queries]) {
  const Vec scale = all(1.0f / std::sqrt(static_cast<float>(head.size)));
  Vec top[queries], total[queries];
#pragma GCC unroll 6
  for (int i = 0; i < queries; ++i) {
    top[i] = all(-1e30f);
    total[i] = zeros();
  }
  float* const scores = head.space.scores;
  for (int key = 0; key < head.padded; key += kLanes) {
#pragma GCC unroll 6
    for (int i = 0; i < queries; ++i) {
      top[i] = larger(top[i], load(scores + i * head.padded + key));
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < queries; ++i) top[i] = all(largest_lane(top[i]));
  for (int key = 0; key < head.padded; key += kLanes) {
#pragma GCC unroll 6
    for (int i = 0; i < queries; ++i) {
      float* s = scores + i * head.padded + key;
      const Vec e = exponential((load(s) - top[i]) * scale);
      store(s, e);
      total[i] = total[i] + e;
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < queries; ++i) inverse[i] = all(1.0f / sum_of_lanes(total[i]));
}

// out[i][d ..] = Σ scores[i][key] v[key][d ..] / Σ scores[i].
template <int queries, int vectors>
void gather_values(const Head& head, int first, int d, const Vec (&inverse)[queries]) {
  Vec sums[queries][vectors];
#pragma GCC unroll 6
  for (int i = 0; i < queries; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[i][v] = zeros();
  }
  const float* value = head.space.values + d;
  const float* scores = head.space.scores;
  for (int key = 0; key < head.keys; ++key, value += head.size) {
    Vec columns[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) columns[v] = load(value + v * kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < queries; ++i) {
      const Vec p = all(scores[i * head.padded + key]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[i][v] = multiply_add(p, columns[v], sums[i][v]);
    }
  }
  float* out = head.out + static_cast<int64_t>(first) * head.out_stride + d;
#pragma GCC unroll 6
  for (int i = 0; i < queries; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      store(out + i * head.out_stride + v * kLanes, sums[i][v] * inverse[i]);
    }
  }
}

template <int queries>
void attend_queries(const Head& head, int first) {
  Vec inverse[queries];
  score<queries>(head, first);
  soften<queries>(head, inverse);
  int d = 0;
  for (; d + kWide * kLanes <= head.size; d += kWide * kLanes) {
    gather_values<queries, kWide>(head, first, d, inverse);
  }
  for (; kWide > 2 && d + 2 * kLanes <= head.size; d += 2 * kLanes) {
    gather_values<queries, 2>(head, first, d, inverse);
  }
  for (; d < head.size; d += kLanes) gather_values<queries, 1>(head, first, d, inverse);
}

template <int queries>
void attend_rest(const Head& head, int first, int count) {
  if constexpr (queries > 0) {
    if (count == queries) return attend_queries<queries>(head, first);
    attend_rest<queries - 1>(head, first, count);
  }
}

// Copies vectors of a head times their gate: keys as columns from `at` on, values as rows.
template <class Number>
void take_keys(const Number* from, int stride, int count, float gate, int at, const Head& head) {
  const Vec g = all(gate);
  for (int first = 0; first < count; first += kLanes) {
    const int left = count - first;
    const Mask mask = first_lanes(left);
    for (int d = 0; d < head.size; d += kLanes) {
      const Number* x = from + static_cast<int64_t>(first) * stride + d;
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = i < left ? load(x + i * stride) * g : zeros();
      }
      transpose(rows);
      float* to = head.space.keys + static_cast<int64_t>(d) * head.padded + at + first;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(mask, to + i * head.padded, rows[i]);
    }
  }
}

template <class Number>
void take_values(const Number* from, int stride, int count, float gate, int at, const Head& head) {
  float* to = head.space.values + static_cast<int64_t>(at) * head.size;
  for (int t = 0; t < count; ++t, from += stride, to += head.size) {
    for (int d = 0; d < head.size; d += kLanes) {
      store(to + d, load(from + d) * all(gate));
    }
  }
}

// ---- the forward pass ----------------------------------------------------------------------

// Where a thread's own space begins, and what is shared; all sizes in floats.
template <class Format>
struct Sizes {
  int hidden, fused, inner;  // strides
  int padded_keys;
  int64_t shared, own;
  int64_t words, scalings, inner_space, keys, values, scores;  // within `own`
  int64_t low_words, low_weights;                              // of low-rank components by AMX

  Sizes(const Encoder& encoder, const Batch& batch) {
    hidden = encoder.hidden + kPad;
    fused = 3 * encoder.hidden + kPad;
    inner = encoder.intermediate + kPad;
    padded_keys = round_up(batch.most_keys, kLanes);
    const int size = encoder.hidden / encoder.heads;
    const bool keeps_inner = (batch.sites >> kFfnDown) & 1;
    shared = static_cast<int64_t>(batch.tokens) *
             (fused + 3 * hidden + 3 * batch.columns + (keeps_inner ? inner : 0));
    const int64_t block = Format::kBlock;
    words = 0;
    const int inputs = std::min(std::max(encoder.hidden, encoder.intermediate), Format::kChunk);
    scalings = words + block * (Format::padded(inputs / Format::kInputs) * Format::kPlanes + kPad);
    inner_space = scalings + 2 * block + kPad;
    keys = inner_space + block * inner;
    values = keys + static_cast<int64_t>(size) * padded_keys;
    scores = values + static_cast<int64_t>(padded_keys) * size;
    low_words = low_weights = own = scores + static_cast<int64_t>(kQueries) * padded_keys;
    if constexpr (Format::kIsTiled) this->add_low_rank_by_tiles(encoder, batch);
    own = (own + 1023) / 1024 * 1024;
  }

#ifdef __AVX512F__
  void add_low_rank_by_tiles(const Encoder& encoder, const Batch& batch) {
    const auto most = [&](int site) {
      const bool is_used = (batch.sites >> site) & 1;
      return is_used ? std::max(encoder.hidden, encoder.intermediate) : encoder.hidden;
    };
    const int64_t block = Format::kBlock;
    const int planes = Format::kLowPlanes, plane = round_up(most(kFfnDown), kStep) / 2;
    const Raising raising(batch.columns + 1, terms_of(planes));
    const int64_t lowered = static_cast<int64_t>(kLowTokens) * plane * planes;
    const int64_t raised = (block + kRows) * (raising.steps * raising.words + kPad);
    const int64_t down = static_cast<int64_t>(plane) * batch.columns * weight_planes(planes);
    const int64_t up = static_cast<int64_t>(raising.steps) * kRows * most(kFfnUp);
    low_weights = low_words + std::max(lowered, raised);
    own = low_weights + std::max(down, up);
  }
#endif
};

template <class Format>
class Pass {
 public:
  Pass(const Encoder& encoder, const Batch& batch, float* logits, float* space, int threads)
      : encoder_(encoder), batch_(batch), sizes_(encoder, batch), threads_(threads), logits_(logits) {
    const int64_t tokens = batch.tokens;
    hidden_ = space;
    qkv_ = hidden_ + tokens * sizes_.hidden;
    context_ = qkv_ + tokens * sizes_.fused;
    x1_ = context_ + tokens * sizes_.hidden;
    low_in_ = x1_ + tokens * sizes_.hidden;
    low_ = low_in_ + tokens * batch.columns;
    low_out_ = low_ + tokens * batch.columns;
    inner_ = has(kFfnDown) ? low_out_ + tokens * batch.columns : nullptr;
    own_ = space + sizes_.shared;
    blocks_ = std::min(equal_parts(Format::kBlock), batch.tokens);
    groups_ = Format::kGroup > 0 && can_group() ? equal_parts(Format::kGroup) : 0;
  }

  // Where no row is long, a thread takes a group of rows through all layers: nobody waits, and what
  // a layer leaves behind is still in the core's cache. Else threads share out every phase.
  void run() {
#pragma omp parallel num_threads(threads_)
    {
      const NoSubnormals no_subnormals;
      if (groups_) {
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < groups_; ++i) run_group(row_of_group(i), row_of_group(i + 1));
      } else {
        const auto each = [&](auto work) { share(work); };
        each([&](int first, int count) { embed(first, count); });
        for (int index = 0; index < encoder_.layer_count; ++index) {
          run_layer(index, each, [&] { share_attention(index); });
        }
#pragma omp for schedule(dynamic, 1)
        for (int row = 0; row < batch_.rows; ++row) answer(row);
      }
      if constexpr (Format::kIsTiled) release_tiles();
    }
  }

 private:
  const Encoder& encoder_;
  const Batch& batch_;
  const Sizes<Format> sizes_;
  const int threads_;
  float *const logits_, *hidden_, *qkv_, *context_, *x1_, *low_in_, *low_, *low_out_, *inner_, *own_;
  int blocks_, groups_;

  bool has(int site) const { return (batch_.sites >> site) & 1; }

  // As many parts for each thread, equal to a token, of `most` tokens at most.
  int equal_parts(int most) const {
    return threads_ * ((batch_.tokens + threads_ * most - 1) / (threads_ * most));
  }
  float* own() const { return own_ + omp_get_thread_num() * sizes_.own; }
  const Adapter& adapter_of(int token) const {
    return *batch_.adapters[batch_.row_of_token[token]];
  }

  // Calls `work` with each run of tokens of one adapter: the adapter, its first token, the one behind.
  template <class Work>
  void each_adapter(int first, int count, Work work) const {
    const int end = first + count;
    for (int token = first; token < end;) {
      int row = batch_.row_of_token[token], stop = batch_.starts[row + 1];
      const Adapter* adapter = batch_.adapters[row];
      while (stop < end && batch_.adapters[++row] == adapter) stop = batch_.starts[row + 1];
      stop = std::min(stop, end);
      work(*adapter, token, stop);
      token = stop;
    }
  }

  static void fetch_numbers(const Adapter& adapter, const void* from, int64_t count) {
    fetch_all(from, count * (adapter.is_half ? sizeof(Half) : sizeof(float)));
  }

  bool can_group() const {
    for (int row = 0; row < batch_.rows; ++row) {
      const int64_t tokens = batch_.starts[row + 1] - batch_.starts[row];
      if (tokens * kShares * threads_ > batch_.tokens) return false;
    }
    return true;
  }

  int row_of_group(int group) const {
    const int32_t* stop = batch_.starts + batch_.rows;
    const int token = part_of(batch_.tokens, group, groups_);
    return static_cast<int>(std::lower_bound(batch_.starts, stop, token) - batch_.starts);
  }

  void run_group(int first_row, int stop_row) {
    if (first_row == stop_row) return;  // a row before it is longer than a group
    const int start = batch_.starts[first_row], tokens = batch_.starts[stop_row] - start;
    const int parts = (tokens + Format::kBlock - 1) / Format::kBlock;
    const auto each = [&](auto work) {
      for (int i = 0; i < parts; ++i) {
        const int first = part_of(tokens, i, parts);
        work(start + first, part_of(tokens, i + 1, parts) - first);
      }
    };
    each([&](int first, int count) { embed(first, count); });
    for (int index = 0; index < encoder_.layer_count; ++index) {
      run_layer(index, each, [&] {
        fetch_prefix(index, first_row);
        for (int row = first_row; row < stop_row; ++row) {
          if (row + 1 < stop_row) fetch_prefix(index, row + 1);
          const PrefixGates gates = prefix_gates(index, row);
          for (int head = 0; head < encoder_.heads; ++head) attend_head(index, row, head, gates);
        }
      });
    }
    for (int row = first_row; row < stop_row; ++row) answer(row);
  }

  // Writes the row's logits.
  void answer(int row) const {
    const AdapterHead& head = batch_.adapters[row]->head;
    const int hidden = encoder_.hidden, first = batch_.reals[row], stop = batch_.starts[row + 1];
    const float* states = hidden_ + static_cast<int64_t>(first) * sizes_.hidden;
    float* logits = logits_ + batch_.answers[row];
    if (head.reading == kEachToken) {
      constexpr int kTokens = 4 * kVectors;
      const int each = head.outputs;
      int t = first;
      for (; t + kTokens <= stop; t += kTokens, states += kTokens * sizes_.hidden) {
        apply_head<kTokens>(head, states, logits);
        logits += kTokens * each;
      }
      for (; t < stop; ++t, states += sizes_.hidden, logits += each) {
        apply_head<1>(head, states, logits);
      }
      return;
    }
    const int count = head.reading == kFirstToken ? 1 : stop - first;
    float* pooled = head.outputs ? own() : logits;
    for (int i = 0; i < hidden; i += kLanes) {
      Vec sum = load(states + i);
      for (int t = 1; t < count; ++t) {
        sum = sum + load(states + static_cast<int64_t>(t) * sizes_.hidden + i);
      }
      store(pooled + i, sum * all(1.0f / static_cast<float>(count)));
    }
    if (head.outputs) apply_head<1>(head, pooled, logits);
  }

  // For tokens one behind the other.
  template <int tokens>
  void apply_head(const AdapterHead& head, const float* x, float* logits) const {
    const int hidden = encoder_.hidden;
    int64_t stride = sizes_.hidden;
    if (head.dense) {
      float* inner = own() + hidden;
      apply<tokens>(head.dense, head.dense_bias, hidden, hidden, x, stride, inner, hidden);
      for (int i = 0; i < tokens * hidden; i += kLanes) {
        store(inner + i, hyperbolic_tangent(load(inner + i)));
      }
      x = inner, stride = hidden;
    }
    apply<tokens>(head.out, head.out_bias, head.outputs, hidden, x, stride, logits, head.outputs);
  }

  // Ends with a barrier: the next phase may read what any thread wrote.
  template <class Work>
  void share(Work work) const {
#pragma omp for schedule(dynamic, 1)
    for (int i = 0; i < blocks_; ++i) {
      const int first = part_of(batch_.tokens, i, blocks_);
      work(first, part_of(batch_.tokens, i + 1, blocks_) - first);
    }
  }

  void share_attention(int index) const {
    const int heads = encoder_.heads, items = batch_.rows * heads;
    // neighbours share memory: a thread takes a run of them
    const int run = std::max(1, items / (8 * threads_));
    int known = -1;
    PrefixGates gates;
#pragma omp for schedule(dynamic, run)
    for (int item = 0; item < items; ++item) {
      const int row = item / heads;
      if (row != known) {
        fetch_prefix(index, row);
        gates = prefix_gates(index, known = row);
      }
      attend_head(index, row, item % heads, gates);
    }
  }

  // `each` calls its argument for blocks of tokens and returns when all are done.
  template <class Each, class Attend>
  void run_layer(int index, Each each, Attend attend) {
    each([&](int first, int count) { qkv(index, first, count); });
    attend();
    if (has(kAttentionOut)) {
      each([&](int first, int count) {
        lower(context_, sizes_.hidden, encoder_.hidden, index, kAttentionOut, low_, first, count);
      });
    }
    each([&](int first, int count) {
      attention_out(index, first, count);
      if (!has(kFfnUp)) {
        ffn_up(index, first, count);
        if (!has(kFfnDown)) ffn_down(index, first, count);
      }
    });
    if (has(kFfnUp)) {
      each([&](int first, int count) {
        lower(x1_, sizes_.hidden, encoder_.hidden, index, kFfnUp, low_, first, count);
      });
      each([&](int first, int count) {
        ffn_up(index, first, count);
        if (!has(kFfnDown)) ffn_down(index, first, count);
      });
    }
    if (has(kFfnDown)) {
      each([&](int first, int count) {
        lower(inner_, sizes_.inner, encoder_.intermediate, index, kFfnDown, low_, first, count);
      });
      each([&](int first, int count) { ffn_down(index, first, count); });
    }
    each([&](int first, int count) { finish_layer(index, first, count); });
  }

  void qkv(int index, int first, int count) {
    each_adapter(first, count, [&](const Adapter& adapter, int, int) {
      const LowRank& part = adapter.layers[index].sites[kAttentionIn];
      if (part.up) fetch_numbers(adapter, part.up, static_cast<int64_t>(part.rank) * encoder_.hidden);
    });
    scale_low(low_in_, index, kAttentionIn, first, count);
    product(encoder_.layers[index].qkv, hidden_, sizes_.hidden, first, count,
            {qkv_, sizes_.fused, nullptr, -1, nullptr, 0, index, kAttentionIn, low_in_});
  }

  void embed(int first, int count) {
    const int hidden = encoder_.hidden;
    for (int token = first; token < first + count; ++token) {
      float* y = hidden_ + static_cast<int64_t>(token) * sizes_.hidden;
      const int64_t id = batch_.ids[token], position = batch_.positions[token];
      if (id < 0) {
        with_numbers_of(adapter_of(token), [&](auto numbers) {
          const auto* from = static_cast<decltype(numbers)>(adapter_of(token).prompt);
          for (int i = 0; i < hidden; i += kLanes) store(y + i, load(from + position * hidden + i));
        });
        continue;
      }
      const float* word = encoder_.word + id * hidden;
      const float* place = encoder_.position + position * hidden;
      const float* type = encoder_.type + static_cast<int64_t>(batch_.types[token]) * hidden;
      for (int i = 0; i < hidden; i += kLanes) {
        store(y + i, load(word + i) + load(place + i) + load(type + i));
      }
      normalize(encoder_.embedding_norm, encoder_.eps, hidden, y, y);
    }
    lower(hidden_, sizes_.hidden, hidden, 0, kAttentionIn, low_in_, first, count);
  }

  // Computes the site's columns for tokens of the block, adapter by adapter.
  void lower(const float* x, int x_stride, int inputs, int layer, int site, float* low, int first,
             int count) const {
    if (!has(site)) return;
    each_adapter(first, count, [&](const Adapter& adapter, int token, int stop) {
      const LowRank& part = adapter.layers[layer].sites[site];
      if (part.rank + part.gates == 0) return;
      const auto* from = x + static_cast<int64_t>(token) * x_stride;
      float* to = low + static_cast<int64_t>(token) * batch_.columns;
      if constexpr (Format::kIsTiled) {
        if (adapter.is_half) return this->lower_fp16(part, inputs, from, x_stride, stop - token, to);
      }
      constexpr int kTokens = kLowered;
      for (; token < stop; token += kTokens) {
        with_numbers_of(adapter, [&](auto numbers) {
          using Number = std::remove_cv_t<std::remove_pointer_t<decltype(numbers)>>;
          lower_rest<Number, kTokens>(part, std::min(kTokens, stop - token), inputs, from, x_stride, to,
                                      batch_.columns);
        });
        from += kTokens * x_stride;
        to += kTokens * batch_.columns;
      }
    });
  }

  uint32_t* own_words(int64_t place) const { return reinterpret_cast<uint32_t*>(own() + place); }

  float gate_of_row(const float* low, int row, int column) const {
    const int start = batch_.starts[row], stop = batch_.starts[row + 1];
    float sum = 0.0f;
    for (int t = start; t < stop; ++t) sum += low[static_cast<int64_t>(t) * batch_.columns + column];
    return sum / static_cast<float>(stop - start);
  }

  // Turns low into coefficients of `up`: times the row's gates. Gate columns stay as they are.
  void scale_low(float* low, int layer, int site, int first, int count) const {
    if (!has(site)) return;
    for (int token = first; token < first + count;) {
      const int row = batch_.row_of_token[token];
      const int stop = std::min(first + count, batch_.starts[row + 1]);
      const Adapter& adapter = *batch_.adapters[row];
      const LowRank& part = adapter.layers[layer].sites[site];
      for (int gate = 0; gate < part.lora_gates; ++gate) {
        const float g = gate_of_row(low, row, part.rank + gate);
        const int each = part.rank / part.lora_gates;
        for (int t = token; t < stop; ++t) {
          float* values = low + static_cast<int64_t>(t) * batch_.columns + gate * each;
          for (int r = 0; r < each; ++r) values[r] *= g;
        }
      }
      token = stop;
    }
  }

  // Multiplies the block's tokens of `x`; `after.out` and `after.residual` are those of token 0.
  void product(const Linear& linear, const float* x, int x_stride, int first, int count,
               Epilogue after) {
    x += static_cast<int64_t>(first) * x_stride;
    after.out += static_cast<int64_t>(first) * after.out_stride;
    if (after.residual) after.residual += static_cast<int64_t>(first) * after.out_stride;
    after.batch = has(after.site) ? &batch_ : nullptr;
    after.first_token = first;
    if constexpr (Format::kIsTiled) {
      this->product_by_tiles(linear, x, x_stride, count, after);
    } else if constexpr (Format::kInputs > 1) {
      project<Format>(linear, converted(x, x_stride, linear.inputs, count), count, after);
    } else {
      const auto* words = reinterpret_cast<const uint32_t*>(x);
      project<Format>(linear, {words, x_stride, nullptr}, count, after);
    }
  }

  // `count` tokens of `inputs` numbers as words, in the thread's own space.
  Operand converted(const float* x, int x_stride, int inputs, int count) {
    float* space = own();
    auto* scalings = reinterpret_cast<Scaling*>(space + sizes_.scalings);
    auto* words = reinterpret_cast<uint32_t*>(space + sizes_.words);
    const int filled = inputs / Format::kInputs, plane = Format::padded(filled);
    const int stride = plane * Format::kPlanes + kPad;
    for (int t = 0; t < count; ++t) {
      uint32_t* to = words + static_cast<int64_t>(t) * stride;
      scalings[t] = Format::convert(x + static_cast<int64_t>(t) * x_stride, inputs, to, plane);
      for (int p = 0; p < Format::kPlanes; ++p) {
        std::fill(to + p * plane + filled, to + (p + 1) * plane, 0);
      }
    }
    return {words, stride, scalings};
  }

  void fetch_prefix(int index, int row) const {
    const Adapter& adapter = *batch_.adapters[row];
    const int64_t count = static_cast<int64_t>(adapter.prefix_length) * encoder_.hidden;
    fetch_numbers(adapter, adapter.layers[index].prefix_keys, count);
    fetch_numbers(adapter, adapter.layers[index].prefix_values, count);
  }

  struct PrefixGates {
    float keys = 1.0f, values = 1.0f;
  };

  PrefixGates prefix_gates(int index, int row) const {
    PrefixGates gates;
    const Adapter& adapter = *batch_.adapters[row];
    if (adapter.prefix_length && adapter.prefix_gates) {
      const LowRank& part = adapter.layers[index].sites[kAttentionIn];
      const int column = part.rank + part.lora_gates;
      gates.keys = gates.values = gate_of_row(low_in_, row, column);
      if (adapter.prefix_gates == 2) gates.values = gate_of_row(low_in_, row, column + 1);
    }
    return gates;
  }

  void attend_head(int index, int row, int which, const PrefixGates& gates) const {
    const int hidden = encoder_.hidden, size = hidden / encoder_.heads, offset = which * size;
    const int64_t start = batch_.starts[row];
    const int tokens = batch_.starts[row + 1] - batch_.starts[row];
    const Adapter& adapter = *batch_.adapters[row];
    const int prefix = adapter.prefix_length, keys = prefix + tokens;
    const float* fused = qkv_ + start * sizes_.fused + offset;
    float* space = own();
    const Head head{fused,
                    context_ + start * sizes_.hidden + offset,
                    sizes_.fused,
                    sizes_.hidden,
                    keys,
                    round_up(keys, kLanes),
                    size,
                    {space + sizes_.keys, space + sizes_.values, space + sizes_.scores}};
    if (prefix) {
      const AdapterLayer& layer = adapter.layers[index];
      with_numbers_of(adapter, [&](auto numbers) {
        using Pointer = decltype(numbers);
        const auto *k = static_cast<Pointer>(layer.prefix_keys) + offset,
                   *v = static_cast<Pointer>(layer.prefix_values) + offset;
        take_keys(k, hidden, prefix, gates.keys, 0, head);
        take_values(v, hidden, prefix, gates.values, 0, head);
      });
    }
    take_keys(fused + hidden, sizes_.fused, tokens, 1.0f, prefix, head);
    take_values(fused + 2 * hidden, sizes_.fused, tokens, 1.0f, prefix, head);
    for (int t = 0; t < tokens; t += kQueries) {
      attend_rest<kQueries>(head, t, std::min(kQueries, tokens - t));
    }
  }

  void attention_out(int index, int first, int count) {
    const Layer& layer = encoder_.layers[index];
    scale_low(low_, index, kAttentionOut, first, count);
    product(layer.attention_out, context_, sizes_.hidden, first, count,
            {x1_, sizes_.hidden, hidden_, -1, nullptr, 0, index, kAttentionOut, low_});
    for (int token = first; token < first + count; ++token) {
      float* x = x1_ + static_cast<int64_t>(token) * sizes_.hidden;
      normalize(layer.attention_norm, encoder_.eps, encoder_.hidden, x, x);
    }
  }

  // The inner states stay in the thread's own space unless another phase has to read them.
  float* inner_of(int first) {
    return inner_ ? inner_ : own() + sizes_.inner_space - static_cast<int64_t>(first) * sizes_.inner;
  }

  void ffn_up(int index, int first, int count) {
    scale_low(low_, index, kFfnUp, first, count);
    product(encoder_.layers[index].ffn_up, x1_, sizes_.hidden, first, count,
            {inner_of(first), sizes_.inner, nullptr, encoder_.activation, nullptr, 0, index, kFfnUp,
             low_});
  }

  // Leaves f + x₁ in the place of the attention's context, which nobody reads any more.
  void ffn_down(int index, int first, int count) {
    const Layer& layer = encoder_.layers[index];
    scale_low(low_, index, kFfnDown, first, count);
    product(layer.ffn_down, inner_of(first), sizes_.inner, first, count,
            {context_, sizes_.hidden, x1_, -1, nullptr, 0, index, kFfnDown, low_});
    if (!has(kBottleneck)) return;
    for (int token = first; token < first + count; ++token) {
      const int64_t place = static_cast<int64_t>(token) * sizes_.hidden;
      normalize(layer.ffn_norm, encoder_.eps, encoder_.hidden, context_ + place, x1_ + place);
    }
    lower(x1_, sizes_.hidden, encoder_.hidden, index, kBottleneck, low_out_, first, count);
  }

  // h' = LN₂(f + g u + x₁), and what the next layer's first site needs of it.
  void finish_layer(int index, int first, int count) {
    const Layer& layer = encoder_.layers[index];
    const int hidden = encoder_.hidden;
    const auto fetch_up = [&](const Adapter& adapter) {
      const LowRank& part = adapter.layers[index].sites[kBottleneck];
      if (part.up) fetch_numbers(adapter, part.up, static_cast<int64_t>(part.rank + 1) * hidden);
    };
    fetch_up(adapter_of(first));
    each_adapter(first, count, [&](const Adapter& adapter, int token, int stop) {
      const LowRank& part = adapter.layers[index].sites[kBottleneck];
      if (stop < first + count) fetch_up(adapter_of(stop));
      if (part.up) add_bottleneck(adapter, part, token, stop);
    });
    for (int token = first; token < first + count; ++token) {
      normalize(layer.ffn_norm, encoder_.eps, hidden,
                context_ + static_cast<int64_t>(token) * sizes_.hidden,
                hidden_ + static_cast<int64_t>(token) * sizes_.hidden);
    }
    if (index + 1 < encoder_.layer_count) {
      lower(hidden_, sizes_.hidden, hidden, index + 1, kAttentionIn, low_in_, first, count);
    }
  }

  // context[token] += gate · (activate(low) up + bias), for tokens of one adapter.
  void add_bottleneck(const Adapter& adapter, const LowRank& part, int first, int stop) const {
    const int64_t columns = batch_.columns;
    float gates[Format::kBlock];
    for (int token = first; token < stop;) {
      const int row = batch_.row_of_token[token], end = std::min(stop, batch_.starts[row + 1]);
      const float gate = adapter.is_bottleneck_gated ? gate_of_row(low_out_, row, part.rank) : 1.0f;
      for (; token < end; ++token) {
        gates[token - first] = gate;
        float* low = low_out_ + token * columns;
        for (int r = 0; r < part.rank; r += kLanes) {
          const Mask mask = first_lanes(part.rank - r);
          const Vec u = activate(adapter.activation, load(mask, low + r));
          store(mask, low + r, u * all(gate));
        }
      }
    }
    if constexpr (Format::kIsTiled) {
      if (adapter.is_half) return this->raise_fp16(part, gates, first, stop);
    }
    constexpr int kTokens = 6;
    for (int token = first; token < stop; token += kTokens) {
      with_numbers_of(adapter, [&](auto numbers) {
        using Number = std::remove_cv_t<std::remove_pointer_t<decltype(numbers)>>;
        raise_rest<Number, kTokens>(part, gates + token - first, token,
                                    std::min(kTokens, stop - token));
      });
    }
  }

  template <class Number, int tokens>
  void raise_rest(const LowRank& part, const float* gates, int token, int count) const {
    if constexpr (tokens > 0) {
      if (count < tokens) return raise_rest<Number, tokens - 1>(part, gates, token, count);
      int i = 0;
      for (; i + kWide * kLanes <= encoder_.hidden; i += kWide * kLanes) {
        raise<Number, tokens, kWide>(part, gates, token, i);
      }
      for (; i < encoder_.hidden; i += kLanes) raise<Number, tokens, 1>(part, gates, token, i);
    }
  }

  // context[token][i ..] += low[token] up + gate · bias.
  template <class Number, int tokens, int vectors>
  void raise(const LowRank& part, const float* gates, int token, int i) const {
    float* x = context_ + static_cast<int64_t>(token) * sizes_.hidden + i;
    const float* low = low_out_ + static_cast<int64_t>(token) * batch_.columns;
    const Number* up = static_cast<const Number*>(part.up) + i;
    const Number* bias = up + static_cast<int64_t>(part.rank) * encoder_.hidden;
    Vec sums[tokens][vectors];
#pragma GCC unroll 6
    for (int t = 0; t < tokens; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        sums[t][v] = multiply_add(all(gates[t]), load(bias + v * kLanes), load(x + t * sizes_.hidden + v * kLanes));
      }
    }
    for (int r = 0; r < part.rank; ++r, up += encoder_.hidden) {
      Vec row[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) row[v] = load(up + v * kLanes);
#pragma GCC unroll 6
      for (int t = 0; t < tokens; ++t) {
        const Vec c = all(low[t * batch_.columns + r]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[t][v] = multiply_add(c, row[v], sums[t][v]);
      }
    }
#pragma GCC unroll 6
    for (int t = 0; t < tokens; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) store(x + t * sizes_.hidden + v * kLanes, sums[t][v]);
    }
  }

#ifdef __AVX512F__

  void product_by_tiles(const Linear& linear, const float* x, int x_stride, int count, Epilogue after) {
    const bool has_fp16 = leave_fp16_to_begin(count, after);
    for (int start = 0; start < linear.inputs; start += Format::kChunk) {
      const int stop = std::min(linear.inputs - start, Format::kChunk) + start;
      const Operand operand = converted(x + start, x_stride, stop - start, count);
      const Chunk chunk{start, stop, linear.inputs};
      project_by_amx<Format>(linear, chunk, operand, count, after, [&](int output) {
        return has_fp16 ? begin_outputs(linear, count, after, output) : Begun{linear.outputs, false};
      });
      if (stop == linear.inputs) break;
    }
  }

  void lower_fp16(const LowRank& part, int inputs, const float* x, int x_stride, int tokens,
                  float* to) const {
    const int width = part.rank + part.gates;
    const auto take = [to, width, bias = part.bias, stride = batch_.columns](int t, int column, Vec sum) {
      store(to + t * stride + column, sum + load(first_lanes(width - column), bias + column));
    };
    lower_by_tiles<Format::kLowPlanes>(static_cast<const Half*>(part.down), inputs, width, x, x_stride,
                                       tokens, own_words(sizes_.low_words),
                                       own_words(sizes_.low_weights), take);
    for (int t = 0; t < tokens; ++t) open_gates(part, to + t * batch_.columns);
  }

  // The gate is one more column of low, as the bias is one more row of up.
  void raise_fp16(const LowRank& part, const float* gates, int first, int stop) const {
    const int64_t columns = batch_.columns;
    const int hidden = encoder_.hidden;
    const auto* up = static_cast<const Half*>(part.up);
    float* const x = context_ + static_cast<int64_t>(first) * sizes_.hidden;
    raise_by_tiles<Format::kLowPlanes>(
        part.rank + 1, hidden, stop - first, own_words(sizes_.low_words),
        own_words(sizes_.low_weights),
        [&](int t, int column) {
          const int left = part.rank - column;
          const Vec low = load(first_lanes(left), low_out_ + (first + t) * columns + column);
          const Mask is_gate = left >= 0 && left < kLanes ? 1 << left : 0;
          return choose(is_gate, all(gates[t]), low);
        },
        [&](int row, int output) { return up + static_cast<int64_t>(row) * hidden + output; },
        [x, stride = sizes_.hidden](int t, int output, Vec sum) {
          float* place = x + t * stride + output;
          store(place, load(place) + sum);
          fetch_next(place + kLowColumns * kLanes);
        });
  }

  const LowRank& part_at(const Epilogue& place, const Adapter& adapter) const {
    return adapter.layers[place.layer].sites[place.site];
  }

  // Tells whether any of the block's tokens has a LoRA of fp16 here. Those are left to `begin_outputs`:
  // what follows the product adds fp32 only, or looks for none.
  bool leave_fp16_to_begin(int count, Epilogue& after) const {
    if (!after.batch) return false;
    bool has_fp16 = false, has_fp32 = false;
    each_adapter(after.first_token, count, [&](const Adapter& adapter, int, int) {
      if (part_at(after, adapter).up) (adapter.is_half ? has_fp16 : has_fp32) = true;
    });
    if (!has_fp32) after.batch = nullptr;
    after.is_fp16_done = true;
    return has_fp16;
  }

  // Puts bias and LoRA of fp16 into the block's outputs from `output` on, as many as a core keeps near
  // until the product is added; into none where nobody has a LoRA of fp16 for them.
  Begun begin_outputs(const Linear& linear, int count, const Epilogue& after, int output) const {
    constexpr int kMost = 384, kParts = 3;  // query, key, value
    const int first = after.first_token;
    const int outputs = linear.outputs / (after.site == kAttentionIn ? kParts : 1);
    const int which = output / outputs, start = output % outputs;
    const int width = std::min(kMost, outputs - start);
    const auto column_of = [&](const Adapter& adapter) {
      const LowRank& part = part_at(after, adapter);
      if (!part.up || !adapter.is_half) return -1;
      return part.parts ? part.part_start[which] : 0;
    };
    Begun begun{output + width, false};
    each_adapter(first, count, [&](const Adapter& adapter, int, int) {
      begun.is_there |= column_of(adapter) >= 0;
    });
    if (!begun.is_there) return begun;
    each_adapter(first, count, [&](const Adapter& adapter, int token, int stop) {
      const LowRank& part = part_at(after, adapter);
      const int tokens = stop - token, first_column = column_of(adapter);
      float* out = after.out + static_cast<int64_t>(token - first) * after.out_stride + output;
      const int64_t stride = after.out_stride;
      const auto take = [out, stride, bias = linear.bias + output](int t, int o, Vec sum) {
        float* place = out + t * stride + o;
        store(place, sum + load(bias + o));
        fetch_next(place + kLowColumns * kLanes);
      };
      if (first_column < 0) {
        for (int t = 0; t < tokens; ++t) {
          for (int o = 0; o < width; o += kLanes) take(t, o, zeros());
        }
        return;
      }
      const int rank = part.parts ? part.part_rank : part.rank;
      const auto* up = static_cast<const Half*>(part.up) + static_cast<int64_t>(first_column) * outputs;
      const float* low = after.coefficients + static_cast<int64_t>(token) * batch_.columns + first_column;
      raise_by_tiles<Format::kLowPlanes>(
          rank, width, tokens, own_words(sizes_.low_words), own_words(sizes_.low_weights),
          [&](int t, int column) {
            return load(first_lanes(rank - column), low + static_cast<int64_t>(t) * batch_.columns + column);
          },
          [&](int row, int o) {
            const int place = start + o;
            return up + (place / kPanel * rank + row) * kPanel + place % kPanel;
          },
          take);
    });
    return begun;
  }

#endif
};

// Calls `work` with the format that the encoder's weights have.
template <class Work>
void with_format([[maybe_unused]] const Encoder& encoder, Work work) {
#ifndef __AVX512F__
  work(Fp32{});
#else
  switch (encoder.precision) {
    case kFp32:
      return encoder.is_tiled ? work(TiledFp32{}) : work(Fp32{});
    case kBf16:
      return encoder.is_tiled ? work(TiledBf16{}) : work(Bf16{});
    default:
      return encoder.is_tiled ? work(TiledInt8{}) : work(Int8{});
  }
#endif
}

}  // namespace

extern "C" {

// The sha256 of the source, so that nobody calls a library built from another one.
const char* upt_source() { return UPT_SOURCE; }

// Floats of workspace that `upt_answer` needs.
int64_t upt_workspace(const Encoder* encoder, const Batch* batch, int32_t threads) {
  int64_t floats = 0;
  with_format(*encoder, [&](auto format) {
    const Sizes<decltype(format)> sizes(*encoder, *batch);
    floats = sizes.shared + threads * sizes.own;
  });
  return floats;
}

// Writes each row's logits behind each other: [output], or [real token, output] where the head reads
// each token.
void upt_answer(const Encoder* encoder, const Batch* batch, float* logits, float* workspace,
                int32_t threads) {
  with_format(*encoder, [&](auto format) {
    Pass<decltype(format)>(*encoder, *batch, logits, workspace, threads).run();
  });
}

// Asks the system for AMX's registers, for this process; 0 if it grants them.
int32_t upt_request_tiles() { return request_tiles() ? 0 : -1; }
}
