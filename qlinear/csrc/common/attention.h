// Attention over the cache, a step of 128 positions at a time with a running softmax, so that scores of a step are
// all there ever is (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). The same code reads a
// prompt (rows: several positions of all query heads that share a key/value head) and a token (rows: those heads).
#pragma once

#include "lanes.h"
#include "ops.h"

namespace awq {
namespace {

constexpr int64_t KEY_TILES = 2;  // tiles of keys scored side by side

AWQ_INLINE Words broadcast_pair(const Bf16* pair) {
  uint32_t word;
  memcpy(&word, pair, sizeof word);
  return Words{} + word;
}

// scores (ROWS, CACHE_STEP) of two tiles: a lane a position
template <class Pairs, int ROWS>
void score_tiles(const Bf16* q, const Bf16* keys, int64_t width, float* scores) {
  Floats acc[ROWS][KEY_TILES] = {};
  for (int64_t d = 0; d < width; d += 2) {
    Words key[KEY_TILES];
#pragma GCC unroll 2
    for (int t = 0; t < KEY_TILES; ++t) key[t] = load_pairs(keys + (t * width + d) * CACHE_TILE);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Words query = broadcast_pair(q + r * width + d);
#pragma GCC unroll 2
      for (int t = 0; t < KEY_TILES; ++t) acc[r][t] = Pairs::multiply_add(acc[r][t], key[t], query);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < KEY_TILES; ++t) store(acc[r][t], scores + r * CACHE_STEP + t * CACHE_TILE, LANES);
}

// out (ROWS, width) += weights (ROWS, CACHE_STEP) bf16 @ values, for VECTORS * 16 features: a lane a feature
template <class Pairs, int ROWS, int VECTORS>
void add_values(const Bf16* weights, const Bf16* values, int64_t positions, int64_t width, float* out) {
  Floats acc[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) acc[r][v] = load(out + r * width + v * LANES, LANES);
  for (int64_t p = 0; p < positions; p += 2) {
    Words value[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) value[v] = load_pairs(values + p * width + 2 * v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Words weight = broadcast_pair(weights + r * CACHE_STEP + p);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) acc[r][v] = Pairs::multiply_add(acc[r][v], value[v], weight);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(acc[r][v], out + r * width + v * LANES, LANES);
}

template <class Pairs, int ROWS>
void add_all_values(const Bf16* weights, const Bf16* values, int64_t positions, int64_t width, float* out) {
  int64_t d = 0;
  for (; d + 4 * LANES <= width; d += 4 * LANES)
    add_values<Pairs, ROWS, 4>(weights, values + 2 * d, positions, width, out + d);
  for (; d < width; d += LANES) add_values<Pairs, ROWS, 1>(weights, values + 2 * d, positions, width, out + d);
}

// One row's scores of positions [first, first + positions) to softmax weights; returns what to scale the past by.
AWQ_INLINE float online_softmax(const awq_attention_job& job, int64_t row, int64_t first, int64_t positions,
                                float* scores, Bf16* weights) {
  const int64_t position = job.first + row / job.group;
  const int64_t last = position < job.end ? position : job.end - 1;
  const int64_t oldest = job.window != 0 ? position - job.window + 1 : 0;
  const int64_t low = (oldest > job.begin ? oldest : job.begin) - first, high = last - first;  // what the row sees
  const Ints LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Floats highest = splat(NO_SCORE);
  for (int64_t i = 0; i < positions; i += LANES) {
    Floats score = load(scores + i, LANES) * job.scale;
    if (job.cap != 0.0f) score = job.cap * hyperbolic_tangent(score / job.cap);
    if (low > i || high < i + LANES - 1) {
      const Ints at = LANE + int32_t(i);
      score = at >= int32_t(low > 0 ? low : 0) ? score : splat(2 * NO_SCORE);
      score = at <= int32_t(high < positions ? high : positions) ? score : splat(2 * NO_SCORE);
    }
    highest = larger(highest, score);
    store(score, scores + i, LANES);
  }
  const float before = job.maxima[row], top = largest(larger(highest, splat(before)));
  Floats sum{};
  for (int64_t i = 0; i < positions; i += LANES) {
    const Halves weight = narrow(exponential(load(scores + i, LANES) - top));
    memcpy(weights + i, &weight, sizeof weight);
    sum += widen(weight);  // what is divided by is the sum of what was added up
  }
  const float kept = exponential(splat(before - top))[0];
  job.maxima[row] = top;
  job.sums[row] = job.sums[row] * kept + total(sum);
  return kept;
}

template <class Pairs>
void score_rows(const awq_attention_job& job, const Bf16* keys, int64_t positions, float* scores) {
  for (int64_t t = 0; t < positions; t += KEY_TILES * CACHE_TILE) {
    const Bf16* tiles = keys + t * job.width;
    int64_t r = 0;
    auto score = [&](auto kernel, int64_t rows) {
      for (; r + rows <= job.rows; r += rows)
        kernel(job.q + r * job.width, tiles, job.width, scores + r * CACHE_STEP + t);
    };
    if constexpr (Pairs::ROWS >= 8) score(score_tiles<Pairs, 8>, 8);
    if constexpr (Pairs::ROWS >= 4) {
      score(score_tiles<Pairs, 4>, 4);
      score(score_tiles<Pairs, 3>, 3);
    }
    score(score_tiles<Pairs, 2>, 2);
    score(score_tiles<Pairs, 1>, 1);
  }
}

template <class Pairs>
void value_rows(const awq_attention_job& job, const Bf16* values, int64_t positions, const Bf16* weights) {
  int64_t r = 0;
  auto add = [&](auto kernel, int64_t rows) {
    for (; r + rows <= job.rows; r += rows)
      kernel(weights + r * CACHE_STEP, values, positions, job.width, job.out + r * job.width);
  };
  if constexpr (Pairs::ROWS >= 4) {
    add(add_all_values<Pairs, 4>, 4);
    add(add_all_values<Pairs, 3>, 3);
  }
  add(add_all_values<Pairs, 2>, 2);
  add(add_all_values<Pairs, 1>, 1);
}

template <class Pairs>
void attend(const awq_attention_job& job) {
  alignas(64) float scores[ATTENTION_ROWS * CACHE_STEP];
  alignas(64) Bf16 weights[ATTENTION_ROWS * CACHE_STEP];
  constexpr int64_t TILES = KEY_TILES * CACHE_TILE;
  for (int64_t r = 0; r < job.rows; ++r) {
    job.maxima[r] = NO_SCORE;
    job.sums[r] = 0.0f;
  }
  memset(job.out, 0, size_t(job.rows * job.width) * sizeof *job.out);

  // Steps begin at the same positions whatever the rows beside a row see: it has the same bits in any company.
  for (int64_t first = job.begin / CACHE_STEP * CACHE_STEP; first < job.end; first += CACHE_STEP) {
    const int64_t left = (job.end - first + TILES - 1) / TILES * TILES;
    const int64_t positions = left < CACHE_STEP ? left : CACHE_STEP;
    score_rows<Pairs>(job, job.keys + first * job.width, positions, scores);
    for (int64_t r = 0; r < job.rows; ++r) {
      const float kept = online_softmax(job, r, first, positions, scores + r * CACHE_STEP, weights + r * CACHE_STEP);
      if (kept == 1.0f) continue;
      float* row = job.out + r * job.width;
      for (int64_t d = 0; d < job.width; d += LANES) store(load(row + d, LANES) * kept, row + d, LANES);
    }
    value_rows<Pairs>(job, job.values + first * job.width, positions, weights);
  }
}

}  // namespace
}  // namespace awq
