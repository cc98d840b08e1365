// A cache of bf16 pairs: products of pairs, summed in fp32. `Pairs` multiplies them: PairsByHalves, or what an
// instruction set brings.
#pragma once

#include "attention.h"

namespace awq {
namespace {

// scores (ROWS, CACHE_STEP) of some tiles, times `scale`: a lane a position
template <class Pairs, int ROWS, int TILES>
void score_tiles(const typename Pairs::Same* q, const Bf16* keys, int64_t width, float scale, float* scores) {
  using In = Register<Pairs::WIDTH>;
  constexpr int WIDTH = Pairs::WIDTH, OF_TILE = CACHE_TILE / WIDTH, PARTS = TILES * OF_TILE;
  typename In::Floats acc[ROWS][PARTS] = {};
  for (int64_t d = 0; d < width; d += 2) {
    typename In::Words key[PARTS];
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p) {
      const Bf16* at = keys + (p / OF_TILE * width + d) * CACHE_TILE + p % OF_TILE * 2 * WIDTH;
      memcpy(&key[p], at, sizeof key[p]);
      if (p % OF_TILE == 0) ask_ahead(at);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int p = 0; p < PARTS; ++p) acc[r][p] = Pairs::multiply_add(acc[r][p], key[p], q + r * width + d);
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p) {
      acc[r][p] *= scale;
      memcpy(scores + r * CACHE_STEP + p * WIDTH, &acc[r][p], sizeof acc[r][p]);
    }
}

// out (ROWS, width) += weights (ROWS, CACHE_STEP) @ values, for VECTORS * 16 features: a lane a feature
template <class Pairs, int ROWS, int VECTORS>
void add_pairs(const typename Pairs::Same* weights, const Bf16* values, int64_t positions, int64_t width, bool ask,
               float* out) {
  using In = Register<Pairs::WIDTH>;
  constexpr int WIDTH = Pairs::WIDTH, OF_LANES = LANES / WIDTH, PARTS = VECTORS * OF_LANES;
  typename In::Floats acc[ROWS][PARTS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p) memcpy(&acc[r][p], out + r * width + p * WIDTH, sizeof acc[r][p]);
  for (int64_t at = 0; at < positions; at += 2) {
    typename In::Words value[PARTS];
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p) {
      const Bf16* from = values + at * width + 2 * p * WIDTH;
      memcpy(&value[p], from, sizeof value[p]);
      if (ask && p % OF_LANES == 0) ask_ahead(from);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int p = 0; p < PARTS; ++p)
        acc[r][p] = Pairs::multiply_add(acc[r][p], value[p], weights + r * CACHE_STEP + at);
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p) memcpy(out + r * width + p * WIDTH, &acc[r][p], sizeof acc[r][p]);
}

// Some rows' queries as `Same`: where that is another type, in a place of their own.
template <class Same, int WIDTH>
struct Queries {
  alignas(64) Same kept[ROW_BLOCK * MAX_HEAD];
  AWQ_INLINE const Same* of(const Bf16* q, int64_t count) {
    using In = Register<WIDTH>;
    for (int64_t i = 0; i < count; i += WIDTH) store<In>(load<In>(q + i), kept + i);
    return kept;
  }
};

template <int WIDTH>
struct Queries<Bf16, WIDTH> {
  AWQ_INLINE const Bf16* of(const Bf16* q, int64_t) { return q; }
};

template <class Pairs>
class CacheOfPairs {
  using Same = typename Pairs::Same;

 public:
  static constexpr int WIDTH = Pairs::WIDTH;

  explicit CacheOfPairs(const awq_attention_job& job)
      : job_(job), keys_(static_cast<const Bf16*>(job.keys)), values_(static_cast<const Bf16*>(job.values)) {}

  void score(const Sight& step, float* scores) {
    const int64_t width = job_.width;
    const Same* q = queries_.of(job_.q + step.row * width, step.rows * width);
    for (int64_t t = 0; t < step.positions; t += KEY_TILES * CACHE_TILE) {
      const Bf16* tiles = keys_ + (step.first + t) * width;
      for_rows<Pairs::ROWS>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
        constexpr int ROWS = decltype(count)::value, TILES = beside(ROWS, Pairs::SUMS, KEY_TILES);
        for (int64_t tile = 0; tile < KEY_TILES; tile += TILES)
          score_tiles<Pairs, ROWS, TILES>(q + r * width, tiles + tile * CACHE_TILE * width, width, job_.scale,
                                          scores + r * CACHE_STEP + t + tile * CACHE_TILE);
      });
    }
  }

  // What is divided by is the sum of what is added up: of weights as they are rounded.
  template <class Weight>
  AWQ_INLINE Floats weights(const Sight& step, int64_t row, const float* scores, Weight&& weight) {
    typename Register<WIDTH>::Floats score, sums[LANES / WIDTH] = {};
    for (int64_t i = 0; i < step.positions; i += LANES)
#pragma GCC unroll 4
      for (int p = 0; p < LANES / WIDTH; ++p) {
        memcpy(&score, scores + i + p * WIDTH, sizeof score);
        sums[p] += Pairs::keep(weight(score), weights_ + row * CACHE_STEP + i + p * WIDTH);
      }
    return whole(sums);
  }

  AWQ_INLINE void round(const Sight&, const float*) {}  // they are

  void add_values(const Sight& step) {
    constexpr int MOST = Pairs::ROWS < 4 ? Pairs::ROWS : 4;
    const int64_t width = job_.width;
    const Bf16* values = values_ + step.first * width;
    for_rows<MOST>(step.rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
      constexpr int ROWS = decltype(count)::value, VECTORS = beside(ROWS, Pairs::SUMS, 4);
      const Same* weights = weights_ + r * CACHE_STEP;
      float* out = job_.out + (step.row + r) * width;
      int64_t d = 0;
      for (; d + VECTORS * LANES <= width; d += VECTORS * LANES)
        add_pairs<Pairs, ROWS, VECTORS>(weights, values + 2 * d, step.positions, width, r == 0 && step.row == 0,
                                        out + d);
      for (; d < width; d += LANES)
        add_pairs<Pairs, ROWS, 1>(weights, values + 2 * d, step.positions, width, r == 0 && step.row == 0, out + d);
    });
  }

 private:
  const awq_attention_job& job_;
  const Bf16* keys_;
  const Bf16* values_;
  Queries<Same, WIDTH> queries_;
  alignas(64) Same weights_[ROW_BLOCK * CACHE_STEP];
};

}  // namespace
}  // namespace awq
