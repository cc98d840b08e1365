// A cache of bf16 pairs: products of pairs, summed in fp32. `Pairs` multiplies them: PairsByHalves, or what an
// instruction set brings.
#pragma once

#include "attention.h"

namespace awq {
namespace {

// scores (ROWS, CACHE_STEP) of two tiles, times `scale`: a lane a position
template <class Pairs, int ROWS>
void score_tiles(const Bf16* q, const Bf16* keys, int64_t width, float scale, float* scores) {
  Floats acc[ROWS][KEY_TILES] = {};
  for (int64_t d = 0; d < width; d += 2) {
    Words key[KEY_TILES];
#pragma GCC unroll 2
    for (int t = 0; t < KEY_TILES; ++t) {
      const Bf16* at = keys + (t * width + d) * CACHE_TILE;
      key[t] = load_pairs(at);
      ask_ahead(at);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Words query = broadcast(q + r * width + d);
#pragma GCC unroll 2
      for (int t = 0; t < KEY_TILES; ++t) acc[r][t] = Pairs::multiply_add(acc[r][t], key[t], query);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < KEY_TILES; ++t) store(acc[r][t] * scale, scores + r * CACHE_STEP + t * CACHE_TILE, LANES);
}

// out (ROWS, width) += weights (ROWS, CACHE_STEP) bf16 @ values, for VECTORS * 16 features: a lane a feature
template <class Pairs, int ROWS, int VECTORS>
void add_pairs(const Bf16* weights, const Bf16* values, int64_t positions, int64_t width, bool ask, float* out) {
  Floats acc[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) acc[r][v] = load(out + r * width + v * LANES, LANES);
  for (int64_t p = 0; p < positions; p += 2) {
    Words value[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const Bf16* at = values + p * width + 2 * v * LANES;
      value[v] = load_pairs(at);
      if (ask) ask_ahead(at);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Words weight = broadcast(weights + r * CACHE_STEP + p);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) acc[r][v] = Pairs::multiply_add(acc[r][v], value[v], weight);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(acc[r][v], out + r * width + v * LANES, LANES);
}

template <class Pairs>
class CacheOfPairs {
 public:
  explicit CacheOfPairs(const awq_attention_job& job)
      : job_(job), keys_(static_cast<const Bf16*>(job.keys)), values_(static_cast<const Bf16*>(job.values)) {}

  void score(const Sight& step, float* scores) {
    const int64_t width = job_.width;
    const Bf16* q = job_.q + step.row * width;
    for (int64_t t = 0; t < step.positions; t += KEY_TILES * CACHE_TILE) {
      const Bf16* tiles = keys_ + (step.first + t) * width;
      for_rows<Pairs::ROWS>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
        score_tiles<Pairs, decltype(count)::value>(q + r * width, tiles, width, job_.scale,
                                                   scores + r * CACHE_STEP + t);
      });
    }
  }

  // What is divided by is the sum of what is added up: of weights as they are rounded.
  template <class Weight>
  AWQ_INLINE Floats weights(const Sight& step, int64_t row, const float* scores, Weight&& weight) {
    Floats sum{};
    for (int64_t i = 0; i < step.positions; i += LANES) {
      const Halves rounded = Pairs::round(weight(load(scores + i, LANES)));
      memcpy(weights_ + row * CACHE_STEP + i, &rounded, sizeof rounded);
      sum += widen(rounded);
    }
    return sum;
  }

  AWQ_INLINE void round(const Sight&, const float*) {}  // they are

  void add_values(const Sight& step) {
    constexpr int MOST = Pairs::ROWS < 4 ? Pairs::ROWS : 4;
    const int64_t width = job_.width;
    const Bf16* values = values_ + step.first * width;
    for_rows<MOST>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
      constexpr int ROWS = decltype(count)::value;
      const Bf16* weights = weights_ + r * CACHE_STEP;
      float* out = job_.out + (step.row + r) * width;
      int64_t d = 0;
      for (; d + 4 * LANES <= width; d += 4 * LANES)
        add_pairs<Pairs, ROWS, 4>(weights, values + 2 * d, step.positions, width, r == 0 && step.row == 0, out + d);
      for (; d < width; d += LANES)
        add_pairs<Pairs, ROWS, 1>(weights, values + 2 * d, step.positions, width, r == 0 && step.row == 0, out + d);
    });
  }

 private:
  const awq_attention_job& job_;
  const Bf16* keys_;
  const Bf16* values_;
  alignas(64) Bf16 weights_[ROW_BLOCK * CACHE_STEP];
};

}  // namespace
}  // namespace awq
