// y = x @ w.T for bf16 weights as the model stores them, (n, k) row-major: an output head that is not quantized.
// Lanes lie along k, in pairs; four weight rows at a time are as many linear streams.
#pragma once

#include "lanes.h"
#include "decoder_pieces.h"

namespace awq {
namespace {

template <class Pairs, int ROWS, int COLUMNS, class Out>
AWQ_LANES_INLINE void dense_block(const awq_matrix& matrix, const uint16_t* x, int64_t column, Out* y,
                                  int64_t stride) {
  constexpr int64_t STEP = 2 * WIDTH;
  const int64_t k = matrix.weight.k, whole = k / STEP * STEP;
  const uint16_t* w = matrix.dense + column * k;
  Floats acc[ROWS][COLUMNS] = {};
  auto step = [&](const uint16_t* inputs, int64_t x_stride, const uint16_t* weights, int64_t w_stride)
      __attribute__((always_inline)) {
    Words a[ROWS];
    for (int r = 0; r < ROWS; ++r) a[r] = load_pairs(inputs + r * x_stride);
    for (int c = 0; c < COLUMNS; ++c) {
      const Words b = load_pairs(weights + c * w_stride);
      for (int r = 0; r < ROWS; ++r) acc[r][c] = Pairs::multiply_add(acc[r][c], a[r], b);
    }
  };
  for (int64_t i = 0; i < whole; i += STEP) step(x + i, k, w + i, k);
  if (whole < k) {
    uint16_t last_x[ROWS][STEP] = {}, last_w[COLUMNS][STEP] = {};
    for (int r = 0; r < ROWS; ++r) memcpy(last_x[r], x + r * k + whole, size_t(k - whole) * sizeof *x);
    for (int c = 0; c < COLUMNS; ++c) memcpy(last_w[c], w + c * k + whole, size_t(k - whole) * sizeof *w);
    step(last_x[0], STEP, last_w[0], STEP);
  }
  for (int c = 0; c < COLUMNS; ++c) {
    const float bias = matrix.weight.bias == nullptr ? 0.0f : matrix.weight.bias[column + c];
    for (int r = 0; r < ROWS; ++r) store(splat(total(acc[r][c]) + bias), y + r * stride + column + c, 1);
  }
}

template <class Pairs, int ROWS, class Out>
void dense_rows(const awq_matrix& matrix, const uint16_t* x, int64_t begin, int64_t end, Out* y,
                int64_t stride) {
  int64_t column = begin;
  for (; column + 4 <= end; column += 4) dense_block<Pairs, ROWS, 4>(matrix, x, column, y, stride);
  for (; column < end; ++column) dense_block<Pairs, ROWS, 1>(matrix, x, column, y, stride);
}

template <class Pairs, class Out>
void dense(const awq_matrix& matrix, const uint16_t* x, int64_t rows, int64_t begin, int64_t end, Out* y,
           int64_t stride) {
  const int64_t k = matrix.weight.k;
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) dense_rows<Pairs, 4>(matrix, x + row * k, begin, end, y + row * stride, stride);
  for (; row < rows; ++row) dense_rows<Pairs, 1>(matrix, x + row * k, begin, end, y + row * stride, stride);
}

}  // namespace
}  // namespace awq
