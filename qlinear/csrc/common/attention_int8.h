// A cache of int8: every key and value is a head's features at a position as integers of at most 127, times one scale. A
// query becomes that too, and the weights of values integers of 16 bits, so that all products and their sums are
// exact in int32:
//   score: 127 * 127 * 256 features < 2^23, less 128 * sum(query) while keys stand as 0 to 255: < 2^24
//   values: 255 * 127 * 128 positions < 2^22 for either byte of a weight; both together, 2^8 apart, < 2^30
// Weights of a step are measured by the largest product of a weight and its value's scale: 65535 stands for that.
//
// `Fours` multiplies four unsigned by four signed bytes: FoursAtOnce (attention_fours.h), FoursAsWords (attention_words.h).
//   ROWS, SUMS, WIDTH: as of PairsByHalves; VALUE_ROWS: rows that values are added to at a time, of OF_ROW sums each
//   Integer: of a query, in the order that `keep_query` puts them
//   score, add: scores of some tiles, and values added up; keep_weights: a row's weights as `add` takes them
#pragma once

#include "attention.h"
#include "int8.h"

namespace awq {
namespace {

// A row's query as integers. minus: -128 times their sum, which is what a key's integers bring that stand 128 higher.
struct Query {
  float scale;
  int32_t minus;
};

// Sums of products as scores of some tiles, (ROWS, CACHE_STEP): a lane a position. scales: of their keys, behind them.
template <int WIDTH, int ROWS, int PARTS>
AWQ_INLINE void scaled(const typename Register<WIDTH>::Ints (&acc)[ROWS][PARTS], const Query* queries,
                       const uint8_t* scales, int64_t tile, float* scores) {
  using In = Register<WIDTH>;
  constexpr int OF_TILE = CACHE_TILE / WIDTH;
#pragma GCC unroll 8
  for (int p = 0; p < PARTS; ++p) {
    const uint8_t* at = scales + p / OF_TILE * tile + p % OF_TILE * WIDTH * sizeof(float);
    typename In::Floats scale;
    memcpy(&scale, at, sizeof scale);
    if (p % OF_TILE == 0) ask_ahead(at);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const typename In::Floats score =
          __builtin_convertvector(acc[r][p], typename In::Floats) * (scale * queries[r].scale);
      memcpy(scores + r * CACHE_STEP + p * WIDTH, &score, sizeof score);
    }
  }
}

// out (ROWS, width) += sums of weights as integers, times what one of them stands for: a lane a feature
template <int WIDTH, int ROWS, int PARTS>
AWQ_INLINE void add_scaled(const typename Register<WIDTH>::Ints (&sums)[ROWS][PARTS], const float* units, int64_t width,
                           float* out) {
  using In = Register<WIDTH>;
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p) {
      float* to = out + r * width + p * WIDTH;
      typename In::Floats sum;
      memcpy(&sum, to, sizeof sum);
      sum += __builtin_convertvector(sums[r][p], typename In::Floats) * units[r];
      memcpy(to, &sum, sizeof sum);
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

// Weights of some rows as integers of 16 bits: of a row, as many bytes as two for each position of a step.
struct ByteWeights {
  static constexpr int64_t ROW = 2 * CACHE_STEP;
  alignas(64) uint8_t bytes[ROW_BLOCK * ROW];
  float units[ROW_BLOCK];  // what one stands for
};

// Products of weights and scales to the nearest integers, ties to even.
template <class In>
AWQ_INLINE typename In::Words to_weights(const float* products, float steps) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: a sum with it ends in the nearest integer
  return (typename In::Words)(load<In>(products) * steps + ROUND) & 0xffffu;
}

template <class Fours>
class CacheOfBytes {
 public:
  static constexpr int WIDTH = Fours::WIDTH;

  explicit CacheOfBytes(const awq_attention_job& job)
      : job_(job), keys_(static_cast<const uint8_t*>(job.keys)), values_(static_cast<const uint8_t*>(job.values)) {
    for (int64_t r = 0; r < job.rows; ++r) {
      alignas(64) int8_t row[MAX_HEAD];
      const Int8Sum made = to_integers<Register<WIDTH>>(job.q + r * job.width, job.width, row);
      Fours::keep_query(row, job.width, q_ + r * job.width);
      queries_[r] = {made.scale * job.scale, -128 * made.sum};
    }
  }

  void score(const Sight& step, float* scores) {
    const int64_t width = job_.width;
    for (int64_t t = 0; t < step.positions; t += KEY_TILES * CACHE_TILE) {
      const uint8_t* tiles = keys_ + (step.first + t) / CACHE_TILE * cache_tile_bytes(width, 8);
      for_rows<Fours::ROWS>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
        constexpr int ROWS = decltype(count)::value, TILES = beside(ROWS, Fours::SUMS, KEY_TILES);
        for (int64_t tile = 0; tile < KEY_TILES; tile += TILES)
          Fours::template score<ROWS, TILES>(
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
    most_[row] = whole(most);
    return whole(sums);
  }

  // Products (rows, CACHE_STEP) to integers.
  AWQ_INLINE void round(const Sight& step, const float* products) {
    constexpr float MOST = 65535.0f;
    const Floats most = joined<LargerBits, WIDTH>(most_), steps = most > 0.0f ? MOST / most : most;
    float by[LANES];
    store(steps, by, LANES);
    store(most / MOST, weights_.units, LANES);
    for (int64_t r = 0; r < step.rows; ++r)
      Fours::keep_weights(products + r * CACHE_STEP, step.positions, by[r], weights_.bytes + r * ByteWeights::ROW);
  }

  void add_values(const Sight& step) {
    constexpr int MOST = Fours::SUMS < 4 ? 1 : Fours::VALUE_ROWS;
    const int64_t width = job_.width;
    const uint8_t* values = values_ + step.first / CACHE_TILE * cache_tile_bytes(width, 8);
    for_rows<MOST>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
      constexpr int ROWS = decltype(count)::value, VECTORS = beside(Fours::OF_ROW * ROWS, Fours::SUMS, 4);
      const uint8_t* weights = weights_.bytes + r * ByteWeights::ROW;
      float* out = job_.out + (step.row + r) * width;
      int64_t d = 0;
      const bool ask = r == 0 && step.row == 0;
      for (; d + VECTORS * LANES <= width; d += VECTORS * LANES)
        Fours::template add<ROWS, VECTORS>(weights, weights_.units + r, values + 4 * d, step.positions, width, ask,
                                           out + d);
      for (; d < width; d += LANES)
        Fours::template add<ROWS, 1>(weights, weights_.units + r, values + 4 * d, step.positions, width, ask, out + d);
    });
  }

 private:
  // Of sixteen positions, float each.
  AWQ_INLINE const uint8_t* value_scales(int64_t position) const {
    const uint8_t* at = values_ + position / CACHE_TILE * cache_tile_bytes(job_.width, 8) + job_.width * CACHE_TILE;
    ask_ahead(at);
    return at;
  }

  const awq_attention_job& job_;
  const uint8_t* keys_;
  const uint8_t* values_;
  alignas(64) typename Fours::Integer q_[ATTENTION_ROWS * MAX_HEAD];
  Query queries_[ATTENTION_ROWS];
  ByteWeights weights_;
  Floats most_[ROW_BLOCK] = {};
};

}  // namespace
}  // namespace awq
