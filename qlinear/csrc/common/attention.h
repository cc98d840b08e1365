// Attention over the cache, a step of 128 positions at a time with a running softmax, so that scores of a step are
// all there ever is (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). The same code reads a
// prompt (rows: several positions of all query heads that share a key/value head) and a token (rows: those heads): keys
// and values of a step are loaded once for all of them, 16 rows at a time, whose scores stay in the L1 cache.
//
// `Cache` is how keys and values lie: CacheOfPairs (attention_bf16.h), CacheOfBytes (attention_int8.h).
#pragma once

#include "lanes.h"
#include "ops.h"

namespace awq {
namespace {

constexpr int64_t ROW_BLOCK = LANES;      // rows that are scored, weighed and added up together: a lane each
constexpr int64_t CACHE_AHEAD = 8192;     // bytes that keys and values are asked for before they are needed
constexpr float LOG2_E = 1.44269504f;

template <int VALUE>
struct Count {
  static constexpr int value = VALUE;
};

template <class Vector = Words>
AWQ_INLINE Vector broadcast(const void* four_bytes) {
  uint32_t word;
  memcpy(&word, four_bytes, sizeof word);
  return Vector{} + word;
}

AWQ_INLINE void ask_ahead(const void* line) { __builtin_prefetch(static_cast<const char*>(line) + CACHE_AHEAD, 0, 2); }

// Some rows over some positions, [first, first + positions), of which lanes past the end are not seen.
struct Sight {
  int64_t row, rows, first, positions;
};

// One row's scores as they come from the products, to those that count: capped, and out of sight where the row does not
// see the position. Returns the largest, a lane each.
template <int WIDTH>
AWQ_INLINE Floats see(const awq_attention_job& job, int64_t row, const Sight& step, float* scores) {
  const int64_t position = job.first + row / job.group;
  const int64_t last = position < job.end ? position : job.end - 1;
  const int64_t oldest = job.window != 0 ? position - job.window + 1 : 0;
  const int64_t low = (oldest > job.begin ? oldest : job.begin) - step.first, high = last - step.first;
  using In = Register<WIDTH>;
  typename In::Ints lane;
  for (int i = 0; i < WIDTH; ++i) lane[i] = i;
  typename In::Floats highest[LANES / WIDTH];
  for (auto& part : highest) part = typename In::Floats{} + NO_SCORE;
  for (int64_t i = 0; i < step.positions; i += LANES)
#pragma GCC unroll 4
    for (int p = 0; p < LANES / WIDTH; ++p) {
      const int64_t first = i + p * WIDTH;
      const bool all_seen = low <= first && high >= first + WIDTH - 1;
      auto score = load<In>(scores + first);
      if (!all_seen || job.cap != 0.0f) {
        if (job.cap != 0.0f) score = job.cap * hyperbolic_tangent(score / job.cap);
        if (!all_seen) {
          const auto at = lane + int32_t(first);
          const auto unseen = typename In::Floats{} + 2 * NO_SCORE;
          score = at >= int32_t(low > 0 ? low : 0) ? score : unseen;
          score = at <= int32_t(high < step.positions ? high : step.positions) ? score : unseen;
        }
        store<In>(score, scores + first);
      }
      highest[p] = larger(highest[p], score);
    }
  return whole(highest);
}

// Scores of some rows to the weights of values; what was added up before is scaled to the new largest score.
template <class Cache>
AWQ_INLINE void weigh(const awq_attention_job& job, const Sight& step, float* scores, Cache& cache) {
  using In = Register<Cache::WIDTH>;
  Floats values[LANES] = {};
  float kept[LANES], tops[LANES];
  for (int64_t r = 0; r < step.rows; ++r)
    values[r] = see<Cache::WIDTH>(job, step.row + r, step, scores + r * CACHE_STEP);
  const Floats before = load(job.maxima + step.row, step.rows), top = larger(before, joined<Larger, Cache::WIDTH>(values));
  const Floats factor = exponential(before - top);
  store(top * LOG2_E, tops, LANES);
  store(factor, kept, LANES);
  store(top, job.maxima + step.row, step.rows);
  for (int64_t r = 0; r < step.rows; ++r)
    values[r] = cache.weights(step, r, scores + r * CACHE_STEP, [&](auto score) __attribute__((always_inline)) {
      return exp2_up_to_1(score * LOG2_E - tops[r]);
    });
  cache.round(step, scores);
  store(load(job.sums + step.row, step.rows) * factor + totals<Cache::WIDTH>(values), job.sums + step.row, step.rows);
  for (int64_t r = 0; r < step.rows; ++r) {
    if (kept[r] == 1.0f) continue;
    float* row = job.out + (step.row + r) * job.width;
    for (int64_t d = 0; d < job.width; d += In::LANES) store<In>(load<In>(row + d) * kept[r], row + d);
  }
}

template <class Cache>
void attend(const awq_attention_job& job) {
  alignas(64) float scores[ROW_BLOCK * CACHE_STEP];
  Cache cache(job);
  for (int64_t r = 0; r < job.rows; ++r) {
    job.maxima[r] = NO_SCORE;
    job.sums[r] = 0.0f;
  }
  memset(job.out, 0, size_t(job.rows * job.width) * sizeof *job.out);

  // Steps begin at the same positions whatever the rows beside a row see: it has the same bits in any company.
  for (int64_t first = job.begin / CACHE_STEP * CACHE_STEP; first < job.end; first += CACHE_STEP) {
    const int64_t left = (job.end - first + CACHE_READ - 1) / CACHE_READ * CACHE_READ;
    const int64_t positions = left < CACHE_STEP ? left : CACHE_STEP;
    for (int64_t row = 0; row < job.rows; row += ROW_BLOCK) {
      const Sight step{row, job.rows - row < ROW_BLOCK ? job.rows - row : ROW_BLOCK, first, positions};
      cache.score(step, scores);
      weigh(job, step, scores, cache);
      cache.add_values(step);
    }
  }
}

// Run kernel(first row, constant number of rows) over some rows, as many at a time as there are registers for.
template <int MOST, class Kernel>
AWQ_INLINE void for_rows(int64_t rows, Kernel&& kernel) {
  int64_t r = 0;
  auto run = [&](auto count) __attribute__((always_inline)) {
    for (; r + decltype(count)::value <= rows; r += decltype(count)::value) kernel(r, count);
  };
  if constexpr (MOST >= 8) run(Count<8>{});
  if constexpr (MOST >= 4) {
    run(Count<4>{});
    run(Count<3>{});
  }
  run(Count<2>{});
  run(Count<1>{});
}

}  // namespace
}  // namespace awq
