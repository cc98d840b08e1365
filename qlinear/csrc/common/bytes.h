// y = x @ w.T for weights of one byte: int8 codes, which are bf16 numbers too, and a bf16 scale for 64 in a row. Sums are
// fp32, of a group first, then of the groups, scaled: the same for a row whatever rows are beside it.
//
// A group is sixteen words: the bytes of word w are the columns 2w, 2w + 1, 32 + 2w and 33 + 2w, so that shifts bring two
// pairs of neighbours into its lane. The last group of a row is filled with zeros.
#pragma once

#include "lanes.h"
#include "ops.h"

namespace awq {
namespace {

constexpr int64_t PAIRED = 2 * LANES;  // columns that lie in a vector of pairs
constexpr int HALVES = BYTE_GROUP / PAIRED;

AWQ_INLINE Words pairs_at(const Bf16* from, int64_t count) {
  if (count >= PAIRED) return load_pairs(from);
  Bf16 some[PAIRED] = {};
  if (count > 0) memcpy(some, from, size_t(count) * sizeof *from);
  return load_pairs(some);
}

// Bytes 2 half and 2 half + 1 of each word, as a pair of bf16.
AWQ_INLINE Words codes_of(Ints words, int half) {
  const Floats even = __builtin_convertvector(words << (24 - 16 * half) >> 24, Floats);
  const Floats odd = __builtin_convertvector(words << (16 - 16 * half) >> 24, Floats);
  return (Words)even >> 16 | ((Words)odd & 0xffff0000u);
}

// The columns [column, column + COLUMNS) of ROWS rows.
template <class Pairs, int ROWS, int COLUMNS, class Out>
AWQ_INLINE void bytes_block(const awq_matrix& matrix, const Bf16* x, int64_t column, Out* y, int64_t stride) {
  const int64_t k = matrix.weight.k, groups = byte_groups(k);
  const int8_t* w = matrix.bytes + column * groups * BYTE_GROUP;
  const Bf16* scales = matrix.byte_scales + column * groups;
  Floats acc[ROWS][COLUMNS] = {};
  for (int64_t g = 0; g < groups; ++g) {
    Words a[HALVES][ROWS];
    for (int half = 0; half < HALVES; ++half)
      for (int r = 0; r < ROWS; ++r) {
        const int64_t at = g * BYTE_GROUP + half * PAIRED;
        a[half][r] = pairs_at(x + r * k + at, k - at);
      }
    for (int c = 0; c < COLUMNS; ++c) {
      Ints words;
      memcpy(&words, w + (c * groups + g) * BYTE_GROUP, sizeof words);
      const Words codes[HALVES] = {codes_of(words, 0), codes_of(words, 1)};
      const Floats scale = splat(widen(scales[c * groups + g]));
      for (int r = 0; r < ROWS; ++r) {
        Floats sum{};
        for (int half = 0; half < HALVES; ++half) sum = Pairs::multiply_add(sum, a[half][r], codes[half]);
        acc[r][c] += sum * scale;
      }
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COLUMNS; ++c) {
      const float bias = matrix.weight.bias == nullptr ? 0 : matrix.weight.bias[column + c];
      store(splat(total(acc[r][c]) + bias), y + r * stride + column + c, 1);
    }
}

// A panel of rows at a time, which stays in L2 while the weights stream past it.
template <class Pairs, int COLUMNS, class Out>
void bytes_columns(const DenseJob& job, int64_t column, int64_t row, int64_t last, Out* y, int64_t stride) {
  const int64_t k = job.matrix.weight.k;
  for (; row + 4 <= last; row += 4)
    bytes_block<Pairs, 4, COLUMNS>(job.matrix, job.x + row * k, column, y + row * stride, stride);
  for (; row < last; ++row)
    bytes_block<Pairs, 1, COLUMNS>(job.matrix, job.x + row * k, column, y + row * stride, stride);
}

template <class Pairs, class Out>
void multiply_bytes(const DenseJob& job, Out* y, int64_t stride) {
  constexpr int64_t PANEL = 48;
  for (int64_t row = 0; row < job.rows; row += PANEL) {
    const int64_t last = row + PANEL < job.rows ? row + PANEL : job.rows;
    int64_t column = job.begin;
    for (; column + 4 <= job.end; column += 4) bytes_columns<Pairs, 4>(job, column, row, last, y, stride);
    for (; column < job.end; ++column) bytes_columns<Pairs, 1>(job, column, row, last, y, stride);
  }
}

// A row of bf16 (k) in bytes. The scale is rounded to bf16 before codes are chosen. Of a group that holds an infinity or
// a NaN, the scale is a NaN.
inline void to_bytes(const Bf16* row, int64_t k, int8_t* codes, Bf16* scales) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: the sum has no fraction
  for (int64_t g = 0; g < byte_groups(k); ++g) {
    const int64_t begin = g * BYTE_GROUP, count = k - begin < BYTE_GROUP ? k - begin : BYTE_GROUP;
    Floats most{}, wrong{};
    for (int64_t i = 0; i < count; i += LANES) {
      const Floats value = load(row + begin + i, count - i);
      most = larger(most, larger(value, -value));
      wrong += value * 0.0f;  // a NaN for what is not finite
    }
    scales[g] = narrow(largest(most) / 127 + total(wrong));
    const float scale = widen(scales[g]);
    const Floats inverse = splat(scale > 0 ? 1 / scale : 0);
    int8_t rounded[BYTE_GROUP] = {};
    for (int64_t i = 0; i < count; i += LANES) {
      const Floats near = (load(row + begin + i, count - i) * inverse + ROUND) - ROUND;
      const Ints whole = __builtin_convertvector(smaller(larger(near, splat(-127)), splat(127)), Ints);
      for (int lane = 0; lane < LANES; ++lane) rounded[i + lane] = int8_t(whole[lane]);
    }
    for (int w = 0; w < LANES; ++w)
      for (int b = 0; b < 4; ++b) codes[g * BYTE_GROUP + 4 * w + b] = rounded[b / 2 * PAIRED + 2 * w + b % 2];
  }
}

}  // namespace
}  // namespace awq
