// y = x @ w.T for bf16 weights as the model stores them, (n, k) row-major: an output head that is not quantized.
// Lanes lie along k, in pairs; four weight rows at a time are as many linear streams.
#pragma once

#include "bytes.h"
#include "lanes.h"
#include "ops.h"

namespace awq {
namespace {

struct InBf16 {
  // Lanes [LANE, LANE + PARTS * WIDTH) of the sums of ROWS x COLUMNS outputs, the first of them `column`.
  template <class Pairs, int ROWS, int COLUMNS, int LANE, int PARTS>
  static AWQ_INLINE void add_up(const awq_matrix& matrix, const Bf16* x, int64_t column,
                                float (*sums)[COLUMNS][LANES]) {
    using In = Register<Pairs::WIDTH>;
    constexpr int WIDTH = Pairs::WIDTH;
    constexpr int64_t STEP = 2 * LANES;
    const int64_t k = matrix.weight.k, whole = k / STEP * STEP;
    const Bf16* w = matrix.dense + column * k;
    typename In::Floats acc[ROWS][COLUMNS][PARTS] = {};
    auto step = [&](const Bf16* inputs, int64_t x_stride, const Bf16* weights, int64_t w_stride)
        __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) {
        const int at = 2 * (LANE + p * WIDTH);
        typename In::Words a[ROWS], b;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) memcpy(&a[r], inputs + r * x_stride + at, sizeof a[r]);
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; ++c) {
          memcpy(&b, weights + c * w_stride + at, sizeof b);
#pragma GCC unroll 4
          for (int r = 0; r < ROWS; ++r) acc[r][c][p] = Pairs::multiply_add(acc[r][c][p], a[r], b);
        }
      }
    };
    for (int64_t i = 0; i < whole; i += STEP) {
#pragma GCC unroll 4
      for (int c = 0; LANE == 0 && c < COLUMNS; ++c) ask_for_columns(w + c * k + i);
      step(x + i, k, w + i, k);
    }
    if (whole < k) {
      Bf16 last_x[ROWS][STEP] = {}, last_w[COLUMNS][STEP] = {};
      for (int r = 0; r < ROWS; ++r) memcpy(last_x[r], x + r * k + whole, size_t(k - whole) * sizeof *x);
      for (int c = 0; c < COLUMNS; ++c) memcpy(last_w[c], w + c * k + whole, size_t(k - whole) * sizeof *w);
      step(last_x[0], STEP, last_w[0], STEP);
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS; ++c) memcpy(sums[r][c] + LANE, acc[r][c], sizeof acc[r][c]);
  }
};

// One row meets its weights once, as they come from memory. Several find them in L1 again for each part of the lanes: the
// fewer registers a sum takes, the more rows there are sums for.
template <class Weights, class Pairs, int ROWS, int COLUMNS, int LANE = 0>
AWQ_INLINE void add_up(const awq_matrix& matrix, const Bf16* x, int64_t column, float (*sums)[COLUMNS][LANES]) {
  constexpr int PARTS = ROWS == 1 ? LANES / Pairs::WIDTH : 1, NEXT = LANE + PARTS * Pairs::WIDTH;
  Weights::template add_up<Pairs, ROWS, COLUMNS, LANE, PARTS>(matrix, x, column, sums);
  if constexpr (NEXT < LANES) add_up<Weights, Pairs, ROWS, COLUMNS, NEXT>(matrix, x, column, sums);
}

template <class Weights, class Pairs, int ROWS, int COLUMNS, class Out>
AWQ_INLINE void dense_block(const awq_matrix& matrix, const Bf16* x, int64_t column, Out* y, int64_t stride) {
  alignas(64) float sums[ROWS][COLUMNS][LANES];
  add_up<Weights, Pairs, ROWS, COLUMNS>(matrix, x, column, sums);
  float bias[COLUMNS] = {};
  if (matrix.weight.bias != nullptr) memcpy(bias, matrix.weight.bias + column, sizeof bias);
  if constexpr (ROWS * COLUMNS == LANES) {
    Floats all[LANES], biases;
    memcpy(all, sums, sizeof all);
    for (int r = 0; r < ROWS; ++r) memcpy(reinterpret_cast<float*>(&biases) + r * COLUMNS, bias, sizeof bias);
    Out out[LANES];
    store(totals<Pairs::WIDTH>(all) + biases, out, LANES);
    for (int r = 0; r < ROWS; ++r) memcpy(y + r * stride + column, out + r * COLUMNS, COLUMNS * sizeof *out);
  } else if constexpr (COLUMNS == 4) {
    Four::Floats biases;
    memcpy(&biases, bias, sizeof biases);
    for (int r = 0; r < ROWS; ++r) store<Four>(four_joined<Adds>(sums[r]) + biases, y + r * stride + column);
  } else {
    for (int r = 0; r < ROWS; ++r)
      for (int c = 0; c < COLUMNS; ++c) {
        Floats sum;
        memcpy(&sum, sums[r][c], sizeof sum);
        store(splat(total(sum) + bias[c]), y + r * stride + column + c, 1);
      }
  }
}

// Some columns for rows [row, last): what the columns weigh is in L1 after the first of them.
template <class Weights, class Pairs, int COLUMNS, class Out>
void dense_columns(const DenseJob& job, int64_t column, int64_t row, int64_t last, Out* y, int64_t stride) {
  constexpr int ROWS = beside(4, Pairs::SUMS * (LANES / Pairs::WIDTH), 4);
  const int64_t k = job.matrix.weight.k;
  for (; row + ROWS <= last; row += ROWS)
    dense_block<Weights, Pairs, ROWS, COLUMNS>(job.matrix, job.x + row * k, column, y + row * stride, stride);
  for (; row < last; ++row)
    dense_block<Weights, Pairs, 1, COLUMNS>(job.matrix, job.x + row * k, column, y + row * stride, stride);
}

// A panel of rows at a time, which stays in L2 while the weights stream past it.
template <class Weights, class Pairs, class Out>
void dense_panels(const DenseJob& job, Out* y, int64_t stride) {
  constexpr int64_t PANEL = 48;
  for (int64_t row = 0; row < job.rows; row += PANEL) {
    const int64_t last = row + PANEL < job.rows ? row + PANEL : job.rows;
    int64_t column = job.begin;
    for (; column + 4 <= job.end; column += 4) dense_columns<Weights, Pairs, 4>(job, column, row, last, y, stride);
    for (; column < job.end; ++column) dense_columns<Weights, Pairs, 1>(job, column, row, last, y, stride);
  }
}

template <class Pairs, class Out>
void dense(const DenseJob& job, Out* y, int64_t stride) {
  if (job.matrix.bytes != nullptr) return dense_panels<InBytes, Pairs>(job, y, stride);
  dense_panels<InBf16, Pairs>(job, y, stride);
}

}  // namespace
}  // namespace awq
