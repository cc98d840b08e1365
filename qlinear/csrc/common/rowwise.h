// The decoder's work on single rows: norms, rotation, gated activation, losses.
#pragma once

#include "lanes.h"
#include "decoder_pieces.h"

namespace awq {
namespace {

template <class In>
AWQ_LANES_INLINE float inverse_rms(const In* x, float epsilon, int64_t n) {
  Floats part[2] = {};  // two chains: one would wait for itself
  for (int64_t i = 0; i < n; i += 2 * WIDTH)
    for (int chain = 0; chain < 2; ++chain) {
      const int64_t at = i + chain * WIDTH;
      if (at >= n) break;
      const Floats value = load(x + at, n - at);
      part[chain] += value * value;
    }
  return 1.0f / __builtin_sqrtf(total(part[0] + part[1]) / float(n) + epsilon);
}

void norm(const float* x, const float* weight, float epsilon, int64_t n, uint16_t* out) {
  const float scale = inverse_rms(x, epsilon, n);
  for (int64_t i = 0; i < n; i += WIDTH) store(load(x + i, n - i) * scale * load(weight + i, n - i), out + i, n - i);
}

void add(const uint16_t* delta, const float* weight, float epsilon, int64_t n, float* residual) {
  if (weight == nullptr) {
    for (int64_t i = 0; i < n; i += WIDTH)
      store(load(residual + i, n - i) + load(delta + i, n - i), residual + i, n - i);
    return;
  }
  const float scale = inverse_rms(delta, epsilon, n);
  for (int64_t i = 0; i < n; i += WIDTH) {
    const Floats normed = load(delta + i, n - i) * scale * load(weight + i, n - i);
    store(load(residual + i, n - i) + normed, residual + i, n - i);
  }
}

void embed(const uint16_t* row, float scale, int64_t n, float* residual) {
  for (int64_t i = 0; i < n; i += WIDTH) store(load(row + i, n - i) * scale, residual + i, n - i);
}

void head(const awq_head_job& job, const uint16_t* in, uint16_t* out) {
  float x[MAX_HEAD];
  const int64_t n = job.head_dim, half = job.rotary_dim / 2;
  const float scale = job.norm == nullptr ? 1.0f : inverse_rms(in, job.epsilon, n);
  for (int64_t i = 0; i < n; i += WIDTH) {
    const Floats value = load(in + i, n - i);
    store(job.norm == nullptr ? value : value * scale * load(job.norm + i, n - i), x + i, n - i);
  }
  for (int64_t i = 0; i < half; i += WIDTH) {
    const int64_t count = half - i;
    const Floats a = load(x + i, count), b = load(x + half + i, count);
    const Floats cosine = load(job.cosines + i, count), sine = load(job.sines + i, count);
    store(a * cosine - b * sine, out + i, count);
    store(b * cosine + a * sine, out + half + i, count);
  }
  for (int64_t i = 2 * half; i < n; i += WIDTH) store(load(x + i, n - i), out + i, n - i);
}

AWQ_LANES_INLINE Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

// The tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415).
AWQ_LANES_INLINE Floats gelu_tanh(Floats x) {
  constexpr float ROOT = 0.7978845608f;  // sqrt(2 / pi)
  return 0.5f * x * (1.0f + hyperbolic_tangent(ROOT * (x + 0.044715f * x * x * x)));
}

void gate(const uint16_t* gate, const uint16_t* up, int64_t n, int32_t activation, uint16_t* out) {
  for (int64_t i = 0; i < n; i += WIDTH) {
    const Floats x = load(gate + i, n - i);
    const Floats y = activation == AWQ_SILU ? silu(x) : gelu_tanh(x);
    store(y * load(up + i, n - i), out + i, n - i);
  }
}

void cap(float limit, int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += WIDTH)
    store(limit * hyperbolic_tangent(load(x + i, n - i) / limit), x + i, n - i);
}

float log_sum_exp(const float* x, int64_t n) {
  const float first = x[0];
  Floats highest = splat(first);
  for (int64_t i = 0; i + WIDTH <= n; i += WIDTH) highest = larger(highest, load(x + i, WIDTH));
  for (int64_t i = n / WIDTH * WIDTH; i < n; ++i) highest = larger(highest, splat(x[i]));
  const float top = largest(highest);
  Floats sum{};
  const int64_t whole = n / WIDTH * WIDTH;
  for (int64_t i = 0; i < whole; i += WIDTH) sum += exponential(load(x + i, WIDTH) - top);
  float rest = 0;
  if (whole < n) {
    Floats last = splat(-1e30f);  // lanes past the end add nothing
    memcpy(&last, x + whole, size_t(n - whole) * sizeof *x);
    rest = total(exponential(last - top));
  }
  return top + __builtin_logf(total(sum) + rest);
}

}  // namespace
}  // namespace awq
