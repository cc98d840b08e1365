// How a token chooses its experts.
#pragma once

#include "lanes.h"
#include "ops.h"

namespace awq {
namespace {

constexpr float NOT_COMPARED = -__builtin_inff();

// The first of the largest; 0 where there is none.
AWQ_INLINE int64_t best_of(const float* x, int64_t n) {
  Floats most = splat(NOT_COMPARED);
  const int64_t whole = n / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES) most = larger(load(x + i, LANES), most);
  float best = largest(most);
  for (int64_t i = whole; i < n; ++i) best = x[i] > best ? x[i] : best;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] == best) return i;
  return 0;
}

AWQ_INLINE void softmax(int64_t n, float* x) {
  const Floats most = splat(x[best_of(x, n)]);
  Floats sums = {};
  for (int64_t i = 0; i < n; i += LANES) {
    store(exponential(load(x + i, n - i) - most), x + i, n - i);
    sums += load(x + i, n - i);  // lanes past the end are 0
  }
  const float factor = 1.0f / total(sums);
  for (int64_t i = 0; i < n; i += LANES) store(load(x + i, n - i) * factor, x + i, n - i);
}

AWQ_INLINE void sigmoid(int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += LANES) store(1.0f / (1.0f + exponential(-load(x + i, n - i))), x + i, n - i);
}

// The sum of the two largest: what a group of experts is worth (DeepSeek-V3, arXiv 2412.19437).
inline float worth_of(const float* x, int64_t n) {
  float first = NOT_COMPARED, second = NOT_COMPARED;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] > first) {
      second = first;
      first = x[i];
    } else if (x[i] > second) {
      second = x[i];
    }
  }
  return first + second;
}

// Only the experts of the best groups stay compared.
inline void keep_best_groups(const awq_router& router, int64_t experts, float* compared) {
  const int64_t size = experts / router.groups;
  float worth[MAX_EXPERT_GROUPS];
  bool is_best[MAX_EXPERT_GROUPS] = {};
  for (int64_t g = 0; g < router.groups; ++g) worth[g] = worth_of(compared + g * size, size);
  for (int64_t i = 0; i < router.top_groups; ++i) {
    const int64_t best = best_of(worth, router.groups);
    is_best[best] = true;
    worth[best] = NOT_COMPARED;
  }
  for (int64_t g = 0; g < router.groups; ++g)
    for (int64_t i = g * size; i < (g + 1) * size; ++i) compared[i] = is_best[g] ? compared[i] : NOT_COMPARED;
}

void route(const awq_route_job& job) {
  const awq_router& router = *job.router;
  const int64_t n = router.logits.part[0].weight.n;
  if (router.logits.parts == 2)
    for (int64_t i = 0; i < n; ++i) job.scores[i] += job.scores[n + i];
  router.scoring == AWQ_SOFTMAX ? softmax(n, job.scores) : sigmoid(n, job.scores);
  for (int64_t i = 0; i < n; ++i)
    job.compared[i] = job.scores[i] + (router.correction == nullptr ? 0.0f : router.correction[i]);
  if (router.top_groups < router.groups) keep_best_groups(router, n, job.compared);
  float sum = 0.0f;
  for (int64_t i = 0; i < router.top_k; ++i) {
    const int64_t best = best_of(job.compared, n);
    job.compared[best] = NOT_COMPARED;
    job.chosen[i] = int32_t(best);
    job.weights[i] = job.scores[best];
    sum += job.weights[i];
  }
  if (sum < router.least_sum) sum = router.least_sum;
  for (int64_t i = 0; i < router.top_k; ++i) job.weights[i] *= router.normalized ? router.scaling / sum : router.scaling;
}

}  // namespace
}  // namespace awq
