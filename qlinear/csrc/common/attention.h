// Attention over the cache, a step of 128 positions at a time with a running softmax, so that scores of a step are
// all there ever is (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). The same code reads a
// prompt (rows: several positions of all query heads that share a key/value head) and a token (rows: those heads).
#pragma once

#include "lanes.h"
#include "decoder_pieces.h"

namespace awq {
namespace {

constexpr float NOTHING = -1e30f;  // a maximum over no score yet
constexpr int64_t KEY_TILES = 2;   // tiles of keys scored side by side

AWQ_LANES_INLINE Words broadcast_pair(const uint16_t* pair) {
  uint32_t word;
  memcpy(&word, pair, sizeof word);
  return Words{} + word;
}

// scores (ROWS, CACHE_STEP) of two tiles: a lane a position
template <class Pairs, int ROWS>
void score_tiles(const uint16_t* q, const uint16_t* keys, int64_t width, float* scores) {
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
    for (int t = 0; t < KEY_TILES; ++t) store(acc[r][t], scores + r * CACHE_STEP + t * CACHE_TILE, WIDTH);
}

// out (ROWS, width) += weights (ROWS, CACHE_STEP) bf16 @ values, for VECTORS * 16 features: a lane a feature
template <class Pairs, int ROWS, int VECTORS>
void add_values(const uint16_t* weights, const uint16_t* values, int64_t positions, int64_t width, float* out) {
  Floats acc[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) acc[r][v] = load(out + r * width + v * WIDTH, WIDTH);
  for (int64_t p = 0; p < positions; p += 2) {
    Words value[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) value[v] = load_pairs(values + p * width + 2 * v * WIDTH);
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
    for (int v = 0; v < VECTORS; ++v) store(acc[r][v], out + r * width + v * WIDTH, WIDTH);
}

template <class Pairs, int ROWS>
void add_all_values(const uint16_t* weights, const uint16_t* values, int64_t positions, int64_t width, float* out) {
  int64_t d = 0;
  for (; d + 4 * WIDTH <= width; d += 4 * WIDTH)
    add_values<Pairs, ROWS, 4>(weights, values + 2 * d, positions, width, out + d);
  for (; d < width; d += WIDTH) add_values<Pairs, ROWS, 1>(weights, values + 2 * d, positions, width, out + d);
}

// One row's scores of positions [first, first + positions) to softmax weights; returns what to scale the past by.
AWQ_LANES_INLINE float soften(const awq_attention_job& job, int64_t row, int64_t first, int64_t positions,
                              float* scores, uint16_t* weights) {
  const int64_t position = job.first + row / job.group;
  const int64_t last = position < job.end ? position : job.end - 1;
  const int64_t oldest = job.window != 0 ? position - job.window + 1 : 0;
  const int64_t low = (oldest > job.begin ? oldest : job.begin) - first, high = last - first;  // what the row sees
  const Ints LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Floats highest = splat(NOTHING);
  for (int64_t i = 0; i < positions; i += WIDTH) {
    Floats score = load(scores + i, WIDTH) * job.scale;
    if (job.cap != 0.0f) score = job.cap * hyperbolic_tangent(score / job.cap);
    if (low > i || high < i + WIDTH - 1) {
      const Ints at = LANE + int32_t(i);
      score = at >= int32_t(low > 0 ? low : 0) ? score : splat(2 * NOTHING);
      score = at <= int32_t(high < positions ? high : positions) ? score : splat(2 * NOTHING);
    }
    highest = larger(highest, score);
    store(score, scores + i, WIDTH);
  }
  const float before = job.maxima[row], top = largest(larger(highest, splat(before)));
  Floats sum{};
  for (int64_t i = 0; i < positions; i += WIDTH) {
    const Halves weight = narrow(exponential(load(scores + i, WIDTH) - top));
    memcpy(weights + i, &weight, sizeof weight);
    sum += widen(weight);  // what is divided by is the sum of what was added up
  }
  const float kept = exponential(splat(before - top))[0];
  job.maxima[row] = top;
  job.sums[row] = job.sums[row] * kept + total(sum);
  return kept;
}

template <class Pairs>
void score_rows(const awq_attention_job& job, const uint16_t* keys, int64_t positions, float* scores) {
  for (int64_t t = 0; t < positions; t += KEY_TILES * CACHE_TILE) {
    const uint16_t* tiles = keys + t * job.width;
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
void value_rows(const awq_attention_job& job, const uint16_t* values, int64_t positions, const uint16_t* weights) {
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
  alignas(64) uint16_t weights[ATTENTION_ROWS * CACHE_STEP];
  constexpr int64_t TILES = KEY_TILES * CACHE_TILE;
  for (int64_t r = 0; r < job.rows; ++r) {
    job.maxima[r] = NOTHING;
    job.sums[r] = 0.0f;
  }
  memset(job.out, 0, size_t(job.rows * job.width) * sizeof *job.out);

  for (int64_t first = job.begin / TILES * TILES; first < job.end; first += CACHE_STEP) {
    const int64_t left = (job.end - first + TILES - 1) / TILES * TILES;
    const int64_t positions = left < CACHE_STEP ? left : CACHE_STEP;
    score_rows<Pairs>(job, job.keys + first * job.width, positions, scores);
    for (int64_t r = 0; r < job.rows; ++r) {
      const float kept = soften(job, r, first, positions, scores + r * CACHE_STEP, weights + r * CACHE_STEP);
      if (kept == 1.0f) continue;
      float* row = job.out + r * job.width;
      for (int64_t d = 0; d < job.width; d += WIDTH) store(load(row + d, WIDTH) * kept, row + d, WIDTH);
    }
    value_rows<Pairs>(job, job.values + first * job.width, positions, weights);
  }
}

void scale(const float* x, float factor, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; i += WIDTH) store(load(x + i, n - i) * factor, out + i, n - i);
}

void merge(const MergeJob& job, uint16_t* out) {
  float top = NOTHING, sum = 0.0f, sums[MAX_HEAD] = {};
  for (int64_t i = 0; i < job.pieces; ++i) {
    const float maximum = job.maxima[i * job.step];
    top = maximum > top ? maximum : top;
  }
  for (int64_t i = 0; i < job.pieces; ++i) {
    const float weight = exponential(splat(job.maxima[i * job.step] - top))[0];
    const float* piece = job.out + i * job.step * job.width;
    sum += weight * job.sums[i * job.step];
    for (int64_t d = 0; d < job.width; d += WIDTH)
      store(load(sums + d, WIDTH) + load(piece + d, WIDTH) * weight, sums + d, WIDTH);
  }
  scale(sums, 1.0f / sum, job.head_dim, out);
}

}  // namespace
}  // namespace awq
