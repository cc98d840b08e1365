// The decoder's operations on single rows: norms, rotation, gated activation, the merging of attention's splits.
#pragma once

#include "bytes.h"
#include "lanes.h"
#include "ops.h"
#include "routing.h"

namespace awq {
namespace {

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
template <class Vector>
AWQ_INLINE Vector xielu(Vector x, const float* curve) {
  constexpr float SMALL = -0.25f;
  const Vector below = smaller(x, Vector{} + curve[3]);
  Vector series = Vector{} + 1.0f / 720;
  series = series * below + 1.0f / 120;
  series = series * below + 1.0f / 24;
  series = series * below + 1.0f / 6;
  series = series * below + 0.5f;
  const Vector far = exponential(below) - 1.0f - below;
  const Vector bent = (below > SMALL ? below * below * series : far) + (below - x);
  return (x > 0.0f ? curve[0] * x * x : curve[1] * bent) + curve[2] * x;
}

template <class Vector>
AWQ_INLINE Vector activated(Vector x, int32_t activation, const float* curve) {
  if (activation == AWQ_SILU) return silu(x);
  if (activation == AWQ_GELU_TANH) return gelu_tanh(x);
  if (activation == AWQ_XIELU) return xielu(x, curve);
  const Vector above = larger(Vector{}, x);
  return above * above;
}

// Lane by lane where WIDTH is a register's; what is added up is so in sixteen lanes, on every instruction set.
template <int WIDTH>
struct RowOps {
  using In = Register<WIDTH>;
  using Vector = typename In::Floats;
  // Sums of sixteen lanes.
  struct Sums {
    static constexpr int PARTS = LANES / WIDTH;
    Vector part[PARTS] = {};
    float total() const {
      Floats whole;
      memcpy(&whole, part, sizeof whole);
      return awq::total(whole);
    }
  };

  // take(at, part) of every register of n lanes
  template <class Take>
  static AWQ_INLINE void by_sixteens(int64_t n, Take&& take) {
    for (int64_t i = 0; i < n; i += LANES)
#pragma GCC unroll 4
      for (int part = 0; part < Sums::PARTS; ++part) take(i + part * WIDTH, part);
  }

  template <class X>
  static AWQ_INLINE float inverse_rms(const X* x, float epsilon, int64_t n) {
    constexpr int64_t STEP = 2 * LANES;
    Sums chain[2];  // two: one would wait for itself
    auto take = [&](int64_t at, int64_t count) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int part = 0; part < 2 * Sums::PARTS; ++part) {
        const Vector value = load<In>(x + at + part * WIDTH, count - part * WIDTH);
        chain[part / Sums::PARTS].part[part % Sums::PARTS] += value * value;
      }
    };
    const int64_t whole = n / STEP * STEP;
    for (int64_t i = 0; i < whole; i += STEP) take(i, STEP);
    if (whole < n) take(whole, n - whole);
#pragma GCC unroll 4
    for (int part = 0; part < Sums::PARTS; ++part) chain[0].part[part] += chain[1].part[part];
    return 1.0f / __builtin_sqrtf(chain[0].total() / float(n) + epsilon);
  }

  template <class X>
  static AWQ_INLINE void normalize(const X* x, const float* weight, float epsilon, int64_t n, Bf16* out) {
    const float scale = inverse_rms(x, epsilon, n);
    for (int64_t i = 0; i < n; i += WIDTH)
      store<In>(load<In>(x + i, n - i) * scale * load<In>(weight + i, n - i), out + i, n - i);
  }

  static void norm(const float* x, const float* weight, float epsilon, int64_t n, Bf16* out) {
    normalize(x, weight, epsilon, n, out);
  }

  // What lies above or below the mean; lanes past the first `count` are 0.
  static AWQ_INLINE Vector deviation(const float* x, float mean, int64_t count) {
    const Vector value = load<In>(x, count) - mean;
    if (count >= WIDTH) return value;
    float kept[WIDTH];
    memcpy(kept, &value, sizeof kept);
    return load<In>(kept, count);
  }

  static void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int64_t n, Bf16* out) {
    Sums sum, squares;
    by_sixteens(n, [&](int64_t at, int part) __attribute__((always_inline)) {
      sum.part[part] += load<In>(x + at, n - at);
    });
    const float mean = sum.total() / float(n);
    by_sixteens(n, [&](int64_t at, int part) __attribute__((always_inline)) {
      const Vector value = deviation(x + at, mean, n - at);
      squares.part[part] += value * value;
    });
    const float scale = 1.0f / __builtin_sqrtf(squares.total() / float(n) + epsilon);
    for (int64_t i = 0; i < n; i += WIDTH) {
      const Vector normed = deviation(x + i, mean, n - i) * scale * load<In>(weight + i, n - i);
      store<In>(bias == nullptr ? normed : normed + load<In>(bias + i, n - i), out + i, n - i);
    }
  }

  static void norm_heads(const float* weight, float epsilon, int64_t n, Bf16* x) { normalize(x, weight, epsilon, n, x); }

  static void add(const Bf16* delta, const float* weight, float epsilon, int64_t n, float* residual) {
    if (weight == nullptr) {
      for (int64_t i = 0; i < n; i += WIDTH)
        store<In>(load<In>(residual + i, n - i) + load<In>(delta + i, n - i), residual + i, n - i);
      return;
    }
    const float scale = inverse_rms(delta, epsilon, n);
    for (int64_t i = 0; i < n; i += WIDTH) {
      const Vector normed = load<In>(delta + i, n - i) * scale * load<In>(weight + i, n - i);
      store<In>(load<In>(residual + i, n - i) + normed, residual + i, n - i);
    }
  }

  static void embed(const Bf16* row, float scale, int64_t n, float* residual) {
    for (int64_t i = 0; i < n; i += WIDTH) store<In>(load<In>(row + i, n - i) * scale, residual + i, n - i);
  }

  // (half, 2) -> (2, half)
  static AWQ_INLINE void split_pairs(int64_t half, float* x) {
    float odd[MAX_HEAD / 2];
    for (int64_t i = 0; i < half; ++i) {
      odd[i] = x[2 * i + 1];
      x[i] = x[2 * i];
    }
    memcpy(x + half, odd, size_t(half) * sizeof *x);
  }

  // The features that the rotation turns, from `x` to `out`, which may be the same.
  template <class Out>
  static AWQ_INLINE void turn(const awq_rope_job& job, const float* x, Out* out) {
    const int64_t half = job.rotary_dim / 2;
    for (int64_t i = 0; i < half; i += WIDTH) {
      const int64_t count = half - i;
      const Vector a = load<In>(x + i, count), b = load<In>(x + half + i, count);
      const Vector cosine = load<In>(job.cosines + i, count), sine = load<In>(job.sines + i, count);
      store<In>(a * cosine - b * sine, out + i, count);
      store<In>(b * cosine + a * sine, out + half + i, count);
    }
  }

  static void rope(const awq_rope_job& job, const Bf16* in, Bf16* out) {
    float x[MAX_HEAD];
    const int64_t n = job.head_dim, half = job.rotary_dim / 2;
    const float* norm = job.turned_first ? nullptr : job.norm;
    const float scale = norm == nullptr ? 1.0f : inverse_rms(in, job.epsilon, n);
    for (int64_t i = 0; i < n; i += WIDTH) {
      const Vector value = load<In>(in + i, n - i);
      store<In>(norm == nullptr ? value : value * scale * load<In>(norm + i, n - i), x + i, n - i);
    }
    if (job.interleaved) split_pairs(half, x);
    if (job.turned_first && job.norm != nullptr) {
      turn(job, x, x);
      normalize(x, job.norm, job.epsilon, n, out);
      return;
    }
    turn(job, x, out);
    for (int64_t i = 2 * half; i < n; i += WIDTH) store<In>(load<In>(x + i, n - i), out + i, n - i);
  }

  static void activate(const Bf16* x, int64_t n, int32_t activation, const float* curve, Bf16* out) {
    for (int64_t i = 0; i < n; i += WIDTH)
      store<In>(activated(load<In>(x + i, n - i), activation, curve), out + i, n - i);
  }

  static void gate(const Bf16* gate, const Bf16* up, int64_t n, int32_t activation, Bf16* out) {
    for (int64_t i = 0; i < n; i += WIDTH) {
      const Vector x = load<In>(gate + i, n - i);
      store<In>((activation == AWQ_SILU ? silu(x) : gelu_tanh(x)) * load<In>(up + i, n - i), out + i, n - i);
    }
  }

  static void cap(float limit, int64_t n, float* x) {
    for (int64_t i = 0; i < n; i += WIDTH)
      store<In>(limit * hyperbolic_tangent(load<In>(x + i, n - i) / limit), x + i, n - i);
  }

  static void scale(const float* x, float factor, int64_t n, Bf16* out) {
    for (int64_t i = 0; i < n; i += WIDTH) store<In>(load<In>(x + i, n - i) * factor, out + i, n - i);
  }

  static void merge(const MergeJob& job) {
    const bool higher = job.maximum > *job.top;
    const float lower = exponential(Vector{} + (higher ? *job.top - job.maximum : job.maximum - *job.top))[0];
    const float kept = higher ? lower : 1.0f, weight = higher ? 1.0f : lower;
    if (higher) *job.top = job.maximum;
    *job.total = *job.total * kept + job.sum * weight;
    for (int64_t d = 0; d < job.width; d += WIDTH)
      store<In>(load<In>(job.merged + d) * kept + load<In>(job.out + d) * weight, job.merged + d);
  }

  static void mix(const awq_mix_job& job, Bf16* out) {
    for (int64_t i = 0; i < job.n; i += WIDTH) {
      Vector sum = {};
      for (int64_t row = 0; row < job.count; ++row)
        sum += load<In>(job.rows + job.places[row] * job.n + i, job.n - i) * job.weights[row];
      store<In>(sum, out + i, job.n - i);
    }
  }
};

template <int WIDTH>
void use_row_ops(Ops& ops) {
  using Rows = RowOps<WIDTH>;
  ops.norm = Rows::norm;
  ops.layer_norm = Rows::layer_norm;
  ops.norm_heads = Rows::norm_heads;
  ops.to_bytes = to_bytes;
  ops.add = Rows::add;
  ops.embed = Rows::embed;
  ops.rope = Rows::rope;
  ops.gate = Rows::gate;
  ops.activate = Rows::activate;
  ops.merge = Rows::merge;
  ops.scale = Rows::scale;
  ops.route = route;
  ops.mix = Rows::mix;
  ops.cap = Rows::cap;
}

}  // namespace
}  // namespace awq
