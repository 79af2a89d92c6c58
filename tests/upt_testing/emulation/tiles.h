// AMX without AMX, in place of the kernel's own tiles.h: what Intel's manual says its instructions do,
// but for the order in which products of bf16 are added.
//
// What a CPU would refuse ends the process (pytest -s shows why): a configuration that is none, tiles
// of which it knows nothing, a product of shapes that do not fit.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "avx512.h"

namespace {

constexpr int kTileCount = 8, kTileRows = 16, kTileColumns = 16;

struct Tile {
  int rows = 0, words = 0;
  uint32_t at[kTileRows][kTileColumns];
};

inline thread_local Tile tiles[kTileCount];

inline void demand(bool is_so, const char* what) {
  if (is_so) return;
  std::fprintf(stderr, "AMX would refuse this: %s\n", what);
  std::abort();
}

inline Tile& configured(int tile) {
  demand(tiles[tile].rows > 0, "a tile that is not configured");
  return tiles[tile];
}

inline bool request_tiles() { return true; }

inline void configure_tiles(const void* shape) {
  const auto* bytes = static_cast<const uint8_t*>(shape);
  demand(bytes[0] == 1 && std::count(bytes + 1, bytes + 16, 0) == 15, "a palette that is not 1, or more");
  for (int i = 0; i < kTileCount; ++i) {
    uint16_t width;
    std::memcpy(&width, bytes + 16 + 2 * i, sizeof width);
    const int rows = bytes[48 + i];
    demand(rows <= kTileRows && width <= 4 * kTileColumns && width % 4 == 0 && !rows == !width, "a tile's size");
    tiles[i] = Tile{rows, width / 4, {}};
  }
}

inline void release_tiles() {
  for (Tile& tile : tiles) tile = Tile{};
}

template <int tile>
inline void zero_tile() {
  std::memset(configured(tile).at, 0, sizeof(Tile::at));
}

template <int tile>
inline void load_tile(const uint32_t* from, int64_t stride) {
  zero_tile<tile>();
  Tile& to = tiles[tile];
  for (int i = 0; i < to.rows; ++i) std::memcpy(to.at[i], from + i * stride, 4 * to.words);
}

template <int tile>
inline void store_tile(void* to, int64_t stride) {
  const Tile& from = configured(tile);
  for (int i = 0; i < from.rows; ++i) {
    std::memcpy(static_cast<uint32_t*>(to) + i * stride, from.at[i], 4 * from.words);
  }
}

// For each word of a token and its row of weights: all sums at once.
template <int sum, int x, int w, class Sums, class Add>
inline void multiply_tiles(Add add) {
  static_assert(sum != x && sum != w && x != w, "three tiles");
  Tile& to = configured(sum);
  const Tile &a = configured(x), &b = configured(w);
  demand(a.rows == to.rows && b.words == to.words && a.words == b.rows, "shapes that do not fit");
  for (int i = 0; i < to.rows; ++i) {
    auto sums = emulated::load<Sums>(to.at[i]);
    for (int k = 0; k < a.words; ++k) {
      const auto word = emulated::all(static_cast<int32_t>(a.at[i][k]));
      sums = add(sums, word, emulated::load<emulated::Words>(b.at[k]));
    }
    emulated::store(to.at[i], sums);
  }
}

template <int sum, int x, int w>
inline void add_bf16_tile() {
  multiply_tiles<sum, x, w, emulated::Floats>(emulated::add_products_of_bf16);
}

template <int sum, int x, int w>
inline void add_int8_tile() {
  multiply_tiles<sum, x, w, emulated::Words>(emulated::add_products_of_bytes<false>);
}

template <int sum, int x, int w>
inline void add_signed_tile() {
  multiply_tiles<sum, x, w, emulated::Words>(emulated::add_products_of_bytes<true>);
}

}  // namespace
