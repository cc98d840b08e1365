// The decoder's operations on single rows: norms, rotation, gated activation, the merging of attention's splits.
#pragma once

#include "bytes.h"
#include "lanes.h"
#include "ops.h"
#include "routing.h"

namespace awq {
namespace {

template <class In>
AWQ_INLINE float inverse_rms(const In* x, float epsilon, int64_t n) {
  Floats part[2] = {};  // two chains: one would wait for itself
  for (int64_t i = 0; i < n; i += 2 * LANES)
    for (int chain = 0; chain < 2; ++chain) {
      const int64_t at = i + chain * LANES;
      if (at >= n) break;
      const Floats value = load(x + at, n - at);
      part[chain] += value * value;
    }
  return 1.0f / __builtin_sqrtf(total(part[0] + part[1]) / float(n) + epsilon);
}

template <class In>
AWQ_INLINE void normalize(const In* x, const float* weight, float epsilon, int64_t n, Bf16* out) {
  const float scale = inverse_rms(x, epsilon, n);
  for (int64_t i = 0; i < n; i += LANES) store(load(x + i, n - i) * scale * load(weight + i, n - i), out + i, n - i);
}

void norm(const float* x, const float* weight, float epsilon, int64_t n, Bf16* out) {
  normalize(x, weight, epsilon, n, out);
}

// What lies above or below the mean; lanes past the first `count` are 0.
AWQ_INLINE Floats deviation(const float* x, float mean, int64_t count) {
  const Floats value = load(x, count) - mean;
  if (count >= LANES) return value;
  Floats kept{};
  memcpy(&kept, &value, size_t(count) * sizeof *x);
  return kept;
}

void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int64_t n, Bf16* out) {
  Floats sum{}, squares{};
  for (int64_t i = 0; i < n; i += LANES) sum += load(x + i, n - i);
  const float mean = total(sum) / float(n);
  for (int64_t i = 0; i < n; i += LANES) {
    const Floats value = deviation(x + i, mean, n - i);
    squares += value * value;
  }
  const float scale = 1.0f / __builtin_sqrtf(total(squares) / float(n) + epsilon);
  for (int64_t i = 0; i < n; i += LANES) {
    const Floats normed = deviation(x + i, mean, n - i) * scale * load(weight + i, n - i);
    store(bias == nullptr ? normed : normed + load(bias + i, n - i), out + i, n - i);
  }
}

void norm_heads(const float* weight, float epsilon, int64_t n, Bf16* x) { normalize(x, weight, epsilon, n, x); }

void add(const Bf16* delta, const float* weight, float epsilon, int64_t n, float* residual) {
  if (weight == nullptr) {
    for (int64_t i = 0; i < n; i += LANES)
      store(load(residual + i, n - i) + load(delta + i, n - i), residual + i, n - i);
    return;
  }
  const float scale = inverse_rms(delta, epsilon, n);
  for (int64_t i = 0; i < n; i += LANES) {
    const Floats normed = load(delta + i, n - i) * scale * load(weight + i, n - i);
    store(load(residual + i, n - i) + normed, residual + i, n - i);
  }
}

void embed(const Bf16* row, float scale, int64_t n, float* residual) {
  for (int64_t i = 0; i < n; i += LANES) store(load(row + i, n - i) * scale, residual + i, n - i);
}

// (half, 2) -> (2, half)
AWQ_INLINE void split_pairs(int64_t half, float* x) {
  float odd[MAX_HEAD / 2];
  for (int64_t i = 0; i < half; ++i) {
    odd[i] = x[2 * i + 1];
    x[i] = x[2 * i];
  }
  memcpy(x + half, odd, size_t(half) * sizeof *x);
}

// The features that the rotation turns, from `x` to `out`, which may be the same.
template <class Out>
AWQ_INLINE void turn(const awq_rope_job& job, const float* x, Out* out) {
  const int64_t half = job.rotary_dim / 2;
  for (int64_t i = 0; i < half; i += LANES) {
    const int64_t count = half - i;
    const Floats a = load(x + i, count), b = load(x + half + i, count);
    const Floats cosine = load(job.cosines + i, count), sine = load(job.sines + i, count);
    store(a * cosine - b * sine, out + i, count);
    store(b * cosine + a * sine, out + half + i, count);
  }
}

void rope(const awq_rope_job& job, const Bf16* in, Bf16* out) {
  float x[MAX_HEAD];
  const int64_t n = job.head_dim, half = job.rotary_dim / 2;
  const float* norm = job.turned_first ? nullptr : job.norm;
  const float scale = norm == nullptr ? 1.0f : inverse_rms(in, job.epsilon, n);
  for (int64_t i = 0; i < n; i += LANES) {
    const Floats value = load(in + i, n - i);
    store(norm == nullptr ? value : value * scale * load(norm + i, n - i), x + i, n - i);
  }
  if (job.interleaved) split_pairs(half, x);
  if (job.turned_first && job.norm != nullptr) {
    turn(job, x, x);
    normalize(x, job.norm, job.epsilon, n, out);
    return;
  }
  turn(job, x, out);
  for (int64_t i = 2 * half; i < n; i += LANES) store(load(x + i, n - i), out + i, n - i);
}

template <class Vector>
AWQ_INLINE Vector silu(Vector x) { return x / (1.0f + exponential(-x)); }

// The tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415).
template <class Vector>
AWQ_INLINE Vector gelu_tanh(Vector x) {
  constexpr float ROOT = 0.7978845608f;  // sqrt(2 / pi)
  return 0.5f * x * (1.0f + hyperbolic_tangent(ROOT * (x + 0.044715f * x * x * x)));
}

// xIELU (Huang and Schlag, arXiv 2411.13010): a square above 0, and below it e^x - 1 - x, to both of which beta * x is
// added. Near 0 that is a series: the difference would be left no digits. curve: awq_mlp's.
AWQ_INLINE Floats xielu(Floats x, const float* curve) {
  constexpr float SMALL = -0.25f;
  const Floats below = smaller(x, splat(curve[3]));
  Floats series = splat(1.0f / 720);
  series = series * below + 1.0f / 120;
  series = series * below + 1.0f / 24;
  series = series * below + 1.0f / 6;
  series = series * below + 0.5f;
  const Floats far = exponential(below) - 1.0f - below;
  const Floats bent = (below > splat(SMALL) ? below * below * series : far) + (below - x);
  return (x > 0.0f ? curve[0] * x * x : curve[1] * bent) + curve[2] * x;
}

AWQ_INLINE Floats activated(Floats x, int32_t activation, const float* curve) {
  if (activation == AWQ_SILU) return silu(x);
  if (activation == AWQ_GELU_TANH) return gelu_tanh(x);
  if (activation == AWQ_XIELU) return xielu(x, curve);
  const Floats above = larger(x, Floats{});
  return above * above;
}

void activate(const Bf16* x, int64_t n, int32_t activation, const float* curve, Bf16* out) {
  for (int64_t i = 0; i < n; i += LANES) store(activated(load(x + i, n - i), activation, curve), out + i, n - i);
}

// WIDTH: lanes of a register.
template <int WIDTH>
void gate(const Bf16* gate, const Bf16* up, int64_t n, int32_t activation, Bf16* out) {
  using In = Register<WIDTH>;
  const auto gated = [=](auto x, auto y) __attribute__((always_inline)) {
    return (activation == AWQ_SILU ? silu(x) : gelu_tanh(x)) * y;
  };
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH)
    store_register<In>(gated(load_register<In>(gate + i), load_register<In>(up + i)), out + i);
  if (i < n) store(gated(load(gate + i, n - i), load(up + i, n - i)), out + i, n - i);
}

void cap(float limit, int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += LANES)
    store(limit * hyperbolic_tangent(load(x + i, n - i) / limit), x + i, n - i);
}

void scale(const float* x, float factor, int64_t n, Bf16* out) {
  for (int64_t i = 0; i < n; i += LANES) store(load(x + i, n - i) * factor, out + i, n - i);
}

void merge(const MergeJob& job) {
  const bool higher = job.maximum > *job.top;
  const float lower = exponential(splat(higher ? *job.top - job.maximum : job.maximum - *job.top))[0];
  const float kept = higher ? lower : 1.0f, weight = higher ? 1.0f : lower;
  if (higher) *job.top = job.maximum;
  *job.total = *job.total * kept + job.sum * weight;
  for (int64_t d = 0; d < job.width; d += LANES)
    store(load(job.merged + d, LANES) * kept + load(job.out + d, LANES) * weight, job.merged + d, LANES);
}

template <int WIDTH>
void use_row_ops(Ops& ops) {
  ops.norm = norm;
  ops.layer_norm = layer_norm;
  ops.norm_heads = norm_heads;
  ops.to_bytes = to_bytes;
  ops.add = add;
  ops.embed = embed;
  ops.rope = rope;
  ops.gate = gate<WIDTH>;
  ops.activate = activate;
  ops.merge = merge;
  ops.scale = scale;
  ops.route = route;
  ops.mix = mix;
  ops.cap = cap;
}

}  // namespace
}  // namespace awq
