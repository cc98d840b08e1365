// Fours of bytes of a cache of int8, multiplied and added up at once, as `Quads` does: QuadsOneByOne, or what an instruction
// set brings.
#pragma once

#include "attention_int8.h"

namespace awq {
namespace {

// ROWS, SUMS, WIDTH: as of PairsByHalves.
struct QuadsOneByOne {
  static constexpr int ROWS = 2, SUMS = 2, WIDTH = 4;
  using In = Register<WIDTH>;
  static AWQ_INLINE In::Ints multiply_add(In::Ints acc, In::Words unsigned_bytes, In::Words signed_bytes) {
    for (int shift = 0; shift < 32; shift += 8) {
      const In::Ints a = (In::Ints)(unsigned_bytes >> shift & 255u), b = (In::Ints)(signed_bytes << (24 - shift)) >> 24;
      acc += a * b;
    }
    return acc;
  }
};

template <class Quads>
struct FoursAtOnce {
  static constexpr int ROWS = Quads::ROWS, SUMS = Quads::SUMS, WIDTH = Quads::WIDTH;
  static constexpr int VALUE_ROWS = 2, OF_ROW = 2;  // the upper bytes of weights, and the lower ones
  static constexpr int64_t QUAD = 4;
  using Integer = int8_t;
  using In = Register<WIDTH>;

  static AWQ_INLINE void keep_query(const int8_t* q, int64_t width, Integer* to) { memcpy(to, q, size_t(width)); }

  // Of a row: all upper bytes, all lower ones.
  static AWQ_INLINE void keep_weights(const float* products, int64_t positions, float steps, uint8_t* row) {
    for (int64_t i = 0; i < positions; i += WIDTH) {
      const auto integers = to_weights<In>(products + i, steps);
      const auto high = __builtin_convertvector(integers >> 8, typename In::Bytes);
      const auto low = __builtin_convertvector(integers & 255u, typename In::Bytes);
      memcpy(row + i, &high, sizeof high);
      memcpy(row + CACHE_STEP + i, &low, sizeof low);
    }
  }

  // scores (AT_ONCE, CACHE_STEP) of some tiles: a lane a position
  template <int AT_ONCE, int TILES>
  static void score(const Integer* q, const Query* queries, const uint8_t* keys, int64_t width, float* scores) {
    constexpr int OF_TILE = CACHE_TILE / WIDTH, PARTS = TILES * OF_TILE;
    const int64_t tile = cache_tile_bytes(width, 8);
    typename In::Ints acc[AT_ONCE][PARTS];
#pragma GCC unroll 8
    for (int r = 0; r < AT_ONCE; ++r)
#pragma GCC unroll 8
      for (int p = 0; p < PARTS; ++p) acc[r][p] = typename In::Ints{} + queries[r].minus;
    for (int64_t d = 0; d < width; d += QUAD) {
      typename In::Words key[PARTS];
#pragma GCC unroll 8
      for (int p = 0; p < PARTS; ++p) {
        const uint8_t* at = keys + p / OF_TILE * tile + d * CACHE_TILE + p % OF_TILE * QUAD * WIDTH;
        memcpy(&key[p], at, sizeof key[p]);
        if (p % OF_TILE == 0) ask_ahead(at);
      }
#pragma GCC unroll 8
      for (int r = 0; r < AT_ONCE; ++r) {
        const auto query = broadcast<typename In::Words>(q + r * width + d);
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; ++p) acc[r][p] = Quads::multiply_add(acc[r][p], key[p], query);
      }
    }
    scaled<WIDTH>(acc, queries, keys + width * CACHE_TILE, tile, scores);
  }

  // out (AT_ONCE, width) += weights @ values, for VECTORS * 16 features: a lane a feature
  template <int AT_ONCE, int VECTORS>
  static void add(const uint8_t* weights, const float* units, const uint8_t* values, int64_t positions, int64_t width,
                  bool ask, float* out) {
    constexpr int OF_LANES = LANES / WIDTH, PARTS = VECTORS * OF_LANES;
    typename In::Ints upper[AT_ONCE][PARTS] = {}, lower[AT_ONCE][PARTS] = {};
    for (int64_t first = 0; first < positions; first += CACHE_TILE) {
      for (int64_t at = 0; at < CACHE_TILE; at += QUAD) {
        typename In::Words value[PARTS];
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; ++p) {
          const uint8_t* from = values + at * width + QUAD * p * WIDTH;
          memcpy(&value[p], from, sizeof value[p]);
          if (ask && p % OF_LANES == 0) ask_ahead(from);
        }
#pragma GCC unroll 4
        for (int r = 0; r < AT_ONCE; ++r) {
          const uint8_t* row = weights + r * ByteWeights::ROW + at;
          const auto high = broadcast<typename In::Words>(row), low = broadcast<typename In::Words>(row + CACHE_STEP);
#pragma GCC unroll 8
          for (int p = 0; p < PARTS; ++p) {
            upper[r][p] = Quads::multiply_add(upper[r][p], high, value[p]);
            lower[r][p] = Quads::multiply_add(lower[r][p], low, value[p]);
          }
        }
      }
      values += cache_tile_bytes(width, 8);
      weights += CACHE_TILE;
    }
#pragma GCC unroll 4
    for (int r = 0; r < AT_ONCE; ++r)
#pragma GCC unroll 8
      for (int p = 0; p < PARTS; ++p) lower[r][p] += upper[r][p] * 256;
    add_scaled<WIDTH>(lower, units, width, out);
  }
};

}  // namespace
}  // namespace awq
