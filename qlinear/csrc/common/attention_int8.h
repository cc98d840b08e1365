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

// A row's query as integers. minus: -128 times their sum, which is what a key's integers bring that stand 128 higher.
struct Query {
  float scale;
  int32_t minus;
};

// scores (ROWS, CACHE_STEP) of some tiles: a lane a position
template <class Quads, int ROWS, int TILES>
void score_byte_tiles(const int8_t* q, const Query* queries, const uint8_t* keys, int64_t width, float* scores) {
  using In = Register<Quads::WIDTH>;
  constexpr int WIDTH = Quads::WIDTH, OF_TILE = CACHE_TILE / WIDTH, PARTS = TILES * OF_TILE;
  constexpr int64_t QUAD = 4;
  const int64_t tile = cache_tile_bytes(width, 8);
  typename In::Ints acc[ROWS][PARTS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
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
    for (int r = 0; r < ROWS; ++r) {
      const auto query = broadcast<typename In::Words>(q + r * width + d);
#pragma GCC unroll 8
      for (int p = 0; p < PARTS; ++p) acc[r][p] = Quads::multiply_add(acc[r][p], key[p], query);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < PARTS; ++p) {
    const uint8_t* scales = keys + p / OF_TILE * tile + width * CACHE_TILE + p % OF_TILE * WIDTH * sizeof(float);
    typename In::Floats scale;
    memcpy(&scale, scales, sizeof scale);
    if (p % OF_TILE == 0) ask_ahead(scales);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const typename In::Floats score =
          __builtin_convertvector(acc[r][p], typename In::Floats) * (scale * queries[r].scale);
      memcpy(scores + r * CACHE_STEP + p * WIDTH, &score, sizeof score);
    }
  }
}

// Of values not below 0, and NaN, which is above all: so they compare as their bits do.
struct LargerBits {
  template <class Vector>
  static AWQ_INLINE Vector join(Vector a, Vector b) {
    using Whole = decltype(a < b);
    return (Whole)a > (Whole)b ? a : b;
  }
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
  using In = Register<Quads::WIDTH>;
  constexpr int WIDTH = Quads::WIDTH, OF_LANES = LANES / WIDTH, PARTS = VECTORS * OF_LANES;
  constexpr int64_t QUAD = 4;
  typename In::Ints upper[ROWS][PARTS] = {}, lower[ROWS][PARTS] = {};
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
      for (int r = 0; r < ROWS; ++r) {
        const uint8_t* row = weights + r * 2 * CACHE_STEP + at;
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
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p) {
      float* to = out + r * width + p * WIDTH;
      typename In::Floats sum;
      memcpy(&sum, to, sizeof sum);
      sum += __builtin_convertvector(upper[r][p] * 256 + lower[r][p], typename In::Floats) * units[r];
      memcpy(to, &sum, sizeof sum);
    }
}

template <class Quads>
class CacheOfBytes {
 public:
  static constexpr int WIDTH = Quads::WIDTH;

  explicit CacheOfBytes(const awq_attention_job& job)
      : job_(job), keys_(static_cast<const uint8_t*>(job.keys)), values_(static_cast<const uint8_t*>(job.values)) {
    for (int64_t r = 0; r < job.rows; ++r) {
      const Int8Sum made = to_integers<Register<WIDTH>>(job.q + r * job.width, job.width, q_ + r * job.width);
      queries_[r] = {made.scale * job.scale, -128 * made.sum};
    }
  }

  void score(const Sight& step, float* scores) {
    const int64_t width = job_.width;
    for (int64_t t = 0; t < step.positions; t += KEY_TILES * CACHE_TILE) {
      const uint8_t* tiles = keys_ + (step.first + t) / CACHE_TILE * cache_tile_bytes(width, 8);
      for_rows<Quads::ROWS>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
        constexpr int ROWS = decltype(count)::value, TILES = beside(ROWS, Quads::SUMS, KEY_TILES);
        for (int64_t tile = 0; tile < KEY_TILES; tile += TILES)
          score_byte_tiles<Quads, ROWS, TILES>(
              q_ + (step.row + r) * width, queries_ + step.row + r, tiles + tile * cache_tile_bytes(width, 8), width,
              scores + r * CACHE_STEP + t + tile * CACHE_TILE);
      });
    }
  }

  template <class Weight>
  AWQ_INLINE Floats weights(const Sight& step, int64_t row, float* scores, Weight&& weight) {
    typename Register<WIDTH>::Floats part, scale, sums[LANES / WIDTH] = {}, most[LANES / WIDTH] = {};
    for (int64_t i = 0; i < step.positions; i += LANES) {
      const uint8_t* scales = value_scales(step.first + i);
#pragma GCC unroll 4
      for (int p = 0; p < LANES / WIDTH; ++p) {
        memcpy(&part, scores + i + p * WIDTH, sizeof part);
        memcpy(&scale, scales + p * sizeof scale, sizeof scale);
        part = weight(part);
        sums[p] += part;
        part *= scale;
        most[p] = LargerBits::join(most[p], part);
        memcpy(scores + i + p * WIDTH, &part, sizeof part);
      }
    }
    Floats sum;
    memcpy(&sum, sums, sizeof sum);
    memcpy(&most_[row], most, sizeof most);
    return sum;
  }

  // Products (rows, CACHE_STEP) to integers.
  AWQ_INLINE void round(const Sight& step, const float* products) {
    constexpr float MOST = 65535.0f;
    const Floats most = joined<LargerBits, WIDTH>(most_), steps = most > 0.0f ? MOST / most : most;
    float by[LANES];
    store(steps, by, LANES);
    store(most / MOST, weights_.units, LANES);
    for (int64_t r = 0; r < step.rows; ++r)
      round_row(products + r * CACHE_STEP, step.positions, by[r], weights_.bytes + r * 2 * CACHE_STEP);
  }

  void add_values(const Sight& step) {
    constexpr int MOST = Quads::SUMS < 4 ? 1 : 2;
    const int64_t width = job_.width;
    const uint8_t* values = values_ + step.first / CACHE_TILE * cache_tile_bytes(width, 8);
    for_rows<MOST>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
      // Two sums for each row and feature.
      constexpr int ROWS = decltype(count)::value, VECTORS = beside(2 * ROWS, Quads::SUMS, 4);
      const uint8_t* weights = weights_.bytes + r * 2 * CACHE_STEP;
      float* out = job_.out + (step.row + r) * width;
      int64_t d = 0;
      const bool ask = r == 0 && step.row == 0;
      for (; d + VECTORS * LANES <= width; d += VECTORS * LANES)
        add_bytes<Quads, ROWS, VECTORS>(weights, weights_.units + r, values + 4 * d, step.positions, width, ask, out + d);
      for (; d < width; d += LANES)
        add_bytes<Quads, ROWS, 1>(weights, weights_.units + r, values + 4 * d, step.positions, width, ask, out + d);
    });
  }

 private:
  // Of sixteen positions, float each.
  AWQ_INLINE const uint8_t* value_scales(int64_t position) const {
    const uint8_t* at = values_ + position / CACHE_TILE * cache_tile_bytes(job_.width, 8) + job_.width * CACHE_TILE;
    ask_ahead(at);
    return at;
  }

  static AWQ_INLINE void round_row(const float* products, int64_t positions, float steps, uint8_t* upper) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: a sum with it ends in the nearest integer, ties to even
    using In = Register<WIDTH>;
    for (int64_t i = 0; i < positions; i += WIDTH) {
      const auto integers = (typename In::Words)(load<In>(products + i) * steps + ROUND) & 0xffffu;
      const auto high = __builtin_convertvector(integers >> 8, typename In::Bytes);
      const auto low = __builtin_convertvector(integers & 255u, typename In::Bytes);
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
