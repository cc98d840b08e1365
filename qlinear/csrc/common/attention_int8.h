// A cache of int8: every key and value is a head's features at a position as integers of at most 127, times one scale. A
// query becomes that too, and the weights of values integers of 16 bits, so that all products and their sums are
// exact in int32:
//   score: 127 * 127 * 256 features < 2^23, less 128 * sum(query) while keys stand as 0 to 255: < 2^24
//   values: 255 * 127 * 128 positions < 2^22 for either byte of a weight; both together, 2^8 apart, < 2^30
// Weights of a step are measured by the largest product of a weight and its value's scale: 65535 stands for that.
//
// `Quads` multiplies four unsigned by four signed bytes: QuadsOneByOne, or what an instruction set brings.
#pragma once

#include "attention.h"
#include "int8.h"

namespace awq {
namespace {

struct QuadsOneByOne {
  static constexpr int SUMS = 4;
  static AWQ_INLINE Ints multiply_add(Ints acc, Words unsigned_bytes, Words signed_bytes) {
    for (int shift = 0; shift < 32; shift += 8) {
      const Ints a = (Ints)(unsigned_bytes >> shift & 255u), b = (Ints)(signed_bytes << (24 - shift)) >> 24;
      acc += a * b;
    }
    return acc;
  }
};

AWQ_INLINE Words load_quads(const uint8_t* from) {
  Words quads;
  memcpy(&quads, from, sizeof quads);
  return quads;
}

// A row's query as integers. minus: -128 times their sum, which is what a key's integers bring that stand 128 higher.
struct Query {
  float scale;
  int32_t minus;
};

// scores (ROWS, CACHE_STEP) of two tiles: a lane a position
template <class Quads, int ROWS>
void score_byte_tiles(const int8_t* q, const Query* queries, const uint8_t* keys, int64_t width, float* scores) {
  const int64_t tile = cache_tile_bytes(width, 8);
  Ints acc[ROWS][KEY_TILES];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < KEY_TILES; ++t) acc[r][t] = Ints{} + queries[r].minus;
  for (int64_t d = 0; d < width; d += 4) {
    Words key[KEY_TILES];
#pragma GCC unroll 2
    for (int t = 0; t < KEY_TILES; ++t) {
      const uint8_t* at = keys + t * tile + d * CACHE_TILE;
      key[t] = load_quads(at);
      ask_ahead(at);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Words query = broadcast(q + r * width + d);
#pragma GCC unroll 2
      for (int t = 0; t < KEY_TILES; ++t) acc[r][t] = Quads::multiply_add(acc[r][t], key[t], query);
    }
  }
#pragma GCC unroll 2
  for (int t = 0; t < KEY_TILES; ++t) {
    const uint8_t* scales = keys + t * tile + width * CACHE_TILE;
    Floats scale;
    memcpy(&scale, scales, sizeof scale);
    ask_ahead(scales);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
      store(__builtin_convertvector(acc[r][t], Floats) * (scale * queries[r].scale),
            scores + r * CACHE_STEP + t * CACHE_TILE, LANES);
  }
}

// Of values not below 0, and NaN, which is above all: so they compare as their bits do.
struct LargerBits {
  static AWQ_INLINE Floats join(Floats a, Floats b) { return (Ints)a > (Ints)b ? a : b; }
};

// Weights of some rows as integers of 16 bits, those of a row (2, CACHE_STEP): all upper bytes, all lower ones.
struct ByteWeights {
  alignas(64) uint8_t bytes[ROW_BLOCK * 2 * CACHE_STEP];
  float units[ROW_BLOCK];  // what one stands for
};

// out (ROWS, width) += weights @ values, for VECTORS * 16 features: a lane a feature
template <class Quads, int ROWS, int VECTORS>
void add_bytes(const uint8_t* weights, const float* units, const uint8_t* values, int64_t positions, int64_t width,
               bool ask, float* out) {
  constexpr int64_t QUAD = 4;
  Ints upper[ROWS][VECTORS] = {}, lower[ROWS][VECTORS] = {};
  for (int64_t first = 0; first < positions; first += CACHE_TILE, values += cache_tile_bytes(width, 8), weights += CACHE_TILE) {
    for (int64_t p = 0; p < CACHE_TILE; p += QUAD) {
      Words value[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        const uint8_t* at = values + p * width + QUAD * v * LANES;
        value[v] = load_quads(at);
        if (ask) ask_ahead(at);
      }
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const uint8_t* row = weights + r * 2 * CACHE_STEP + p;
        const Words high = broadcast(row), low = broadcast(row + CACHE_STEP);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
          upper[r][v] = Quads::multiply_add(upper[r][v], high, value[v]);
          lower[r][v] = Quads::multiply_add(lower[r][v], low, value[v]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      float* to = out + r * width + v * LANES;
      const Floats sum = __builtin_convertvector(upper[r][v] * 256 + lower[r][v], Floats);
      store(load(to, LANES) + sum * units[r], to, LANES);
    }
}

template <class Quads>
class CacheOfBytes {
 public:
  static constexpr int WIDTH = LANES;

  explicit CacheOfBytes(const awq_attention_job& job)
      : job_(job), keys_(static_cast<const uint8_t*>(job.keys)), values_(static_cast<const uint8_t*>(job.values)) {
    for (int64_t r = 0; r < job.rows; ++r) {
      const Int8Sum made = to_integers(job.q + r * job.width, job.width, q_ + r * job.width);
      queries_[r] = {made.scale * job.scale, -128 * made.sum};
    }
  }

  void score(const Sight& step, float* scores) {
    const int64_t width = job_.width;
    for (int64_t t = 0; t < step.positions; t += KEY_TILES * CACHE_TILE) {
      const uint8_t* tiles = keys_ + (step.first + t) / CACHE_TILE * cache_tile_bytes(width, 8);
      for_rows<2 * Quads::SUMS>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
        score_byte_tiles<Quads, decltype(count)::value>(q_ + (step.row + r) * width, queries_ + step.row + r, tiles,
                                                        width, scores + r * CACHE_STEP + t);
      });
    }
  }

  template <class Weight>
  AWQ_INLINE Floats weights(const Sight& step, int64_t row, float* scores, Weight&& weight) {
    Floats sum{};
    Floats most{};
    for (int64_t i = 0; i < step.positions; i += LANES) {
      const Floats w = weight(load(scores + i, LANES));
      const Floats product = w * value_scales(step.first + i);
      most = LargerBits::join(most, product);
      sum += w;
      store(product, scores + i, LANES);
    }
    most_[row] = most;
    return sum;
  }

  // Products (rows, CACHE_STEP) to integers.
  AWQ_INLINE void round(const Sight& step, const float* products) {
    constexpr float MOST = 65535.0f;
    const Floats most = joined<LargerBits>(most_), steps = most > 0.0f ? MOST / most : most;
    float by[LANES];
    store(steps, by, LANES);
    store(most / MOST, weights_.units, LANES);
    for (int64_t r = 0; r < step.rows; ++r)
      round_row(products + r * CACHE_STEP, step.positions, by[r], weights_.bytes + r * 2 * CACHE_STEP);
  }

  void add_values(const Sight& step) {
    constexpr int MOST = Quads::SUMS < 2 ? 1 : 2;
    const int64_t width = job_.width;
    const uint8_t* values = values_ + step.first / CACHE_TILE * cache_tile_bytes(width, 8);
    for_rows<MOST>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
      constexpr int ROWS = decltype(count)::value;
      const uint8_t* weights = weights_.bytes + r * 2 * CACHE_STEP;
      float* out = job_.out + (step.row + r) * width;
      int64_t d = 0;
      for (; d + 4 * LANES <= width; d += 4 * LANES)
        add_bytes<Quads, ROWS, 4>(weights, weights_.units + r, values + 4 * d, step.positions, width, r == 0 && step.row == 0, out + d);
      for (; d < width; d += LANES)
        add_bytes<Quads, ROWS, 1>(weights, weights_.units + r, values + 4 * d, step.positions, width, r == 0 && step.row == 0, out + d);
    });
  }

 private:
  AWQ_INLINE Floats value_scales(int64_t position) const {
    const uint8_t* at = values_ + position / CACHE_TILE * cache_tile_bytes(job_.width, 8) + job_.width * CACHE_TILE;
    Floats scales;
    memcpy(&scales, at, sizeof scales);
    ask_ahead(at);
    return scales;
  }

  static AWQ_INLINE void round_row(const float* products, int64_t positions, float steps, uint8_t* upper) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: a sum with it ends in the nearest integer, ties to even
    for (int64_t i = 0; i < positions; i += LANES) {
      const Words integers = (Words)(load(products + i, LANES) * steps + ROUND) & 0xffffu;
      const Bytes high = __builtin_convertvector(integers >> 8, Bytes);
      const Bytes low = __builtin_convertvector(integers & 255u, Bytes);
      memcpy(upper + i, &high, sizeof high);
      memcpy(upper + CACHE_STEP + i, &low, sizeof low);
    }
  }

  const awq_attention_job& job_;
  const uint8_t* keys_;
  const uint8_t* values_;
  alignas(64) int8_t q_[ATTENTION_ROWS * MAX_HEAD];
  Query queries_[ATTENTION_ROWS];
  ByteWeights weights_;
  Floats most_[ROW_BLOCK] = {};
};

}  // namespace
}  // namespace awq
