// y = x @ w.T for bf16 weights as the model stores them, (n, k) row-major: an output head that is not quantized.
// Lanes lie along k, in pairs; four weight rows at a time are as many linear streams.
#pragma once

#include "bytes.h"
#include "lanes.h"
#include "ops.h"

namespace awq {
namespace {

template <class Pairs, int ROWS, int COLUMNS, class Out>
AWQ_INLINE void dense_block(const awq_matrix& matrix, const Bf16* x, int64_t column, Out* y, int64_t stride) {
  using In = Register<Pairs::WIDTH>;
  constexpr int WIDTH = Pairs::WIDTH, PARTS = LANES / WIDTH;
  constexpr int64_t STEP = 2 * LANES;
  const int64_t k = matrix.weight.k, whole = k / STEP * STEP;
  const Bf16* w = matrix.dense + column * k;
  typename In::Floats acc[ROWS][COLUMNS][PARTS] = {};
  auto step = [&](const Bf16* inputs, int64_t x_stride, const Bf16* weights, int64_t w_stride)
      __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; ++p) {
      typename In::Words a[ROWS], b;
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) memcpy(&a[r], inputs + r * x_stride + 2 * p * WIDTH, sizeof a[r]);
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS; ++c) {
        memcpy(&b, weights + c * w_stride + 2 * p * WIDTH, sizeof b);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) acc[r][c][p] = Pairs::multiply_add(acc[r][c][p], a[r], b);
      }
    }
  };
  for (int64_t i = 0; i < whole; i += STEP) step(x + i, k, w + i, k);
  if (whole < k) {
    Bf16 last_x[ROWS][STEP] = {}, last_w[COLUMNS][STEP] = {};
    for (int r = 0; r < ROWS; ++r) memcpy(last_x[r], x + r * k + whole, size_t(k - whole) * sizeof *x);
    for (int c = 0; c < COLUMNS; ++c) memcpy(last_w[c], w + c * k + whole, size_t(k - whole) * sizeof *w);
    step(last_x[0], STEP, last_w[0], STEP);
  }
  Floats sums[ROWS][COLUMNS];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c)
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p)
        memcpy(reinterpret_cast<float*>(&sums[r][c]) + p * WIDTH, &acc[r][c][p], sizeof acc[r][c][p]);
  Out out[ROWS * COLUMNS];
  float bias[ROWS * COLUMNS] = {};
  if (matrix.weight.bias != nullptr)
    for (int r = 0; r < ROWS; ++r) memcpy(bias + r * COLUMNS, matrix.weight.bias + column, COLUMNS * sizeof *bias);
  if constexpr (ROWS * COLUMNS == LANES) {
    store(totals(sums[0]) + load(bias, LANES), out, LANES);
  } else {
    for (int i = 0; i < ROWS * COLUMNS; ++i) store(splat(total(sums[i / COLUMNS][i % COLUMNS]) + bias[i]), out + i, 1);
  }
  for (int r = 0; r < ROWS; ++r) memcpy(y + r * stride + column, out + r * COLUMNS, COLUMNS * sizeof *out);
}

// Some columns for rows [row, last): what the columns weigh is in L1 after the first of them.
template <class Pairs, int COLUMNS, class Out>
void dense_columns(const DenseJob& job, int64_t column, int64_t row, int64_t last, Out* y, int64_t stride) {
  constexpr int ROWS = beside(4, Pairs::SUMS, 4);
  const int64_t k = job.matrix.weight.k;
  for (; row + ROWS <= last; row += ROWS)
    dense_block<Pairs, ROWS, COLUMNS>(job.matrix, job.x + row * k, column, y + row * stride, stride);
  for (; row < last; ++row)
    dense_block<Pairs, 1, COLUMNS>(job.matrix, job.x + row * k, column, y + row * stride, stride);
}

// A panel of rows at a time, which stays in L2 while the weights stream past it.
template <class Pairs, class Out>
void dense(const DenseJob& job, Out* y, int64_t stride) {
  if (job.matrix.bytes != nullptr) return multiply_bytes<Pairs>(job, y, stride);
  constexpr int64_t PANEL = 48;
  for (int64_t row = 0; row < job.rows; row += PANEL) {
    const int64_t last = row + PANEL < job.rows ? row + PANEL : job.rows;
    int64_t column = job.begin;
    for (; column + 4 <= job.end; column += 4) dense_columns<Pairs, 4>(job, column, row, last, y, stride);
    for (; column < job.end; ++column) dense_columns<Pairs, 1>(job, column, row, last, y, stride);
  }
}

}  // namespace
}  // namespace awq
