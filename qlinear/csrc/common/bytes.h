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

// Bytes 2 half and 2 half + 1 of each word, as the pair of codes that `Pairs` multiplies by.
template <class Pairs, class Words>
AWQ_INLINE auto codes_of(Words words, int half) {
  using Vector = typename Register<Pairs::WIDTH>::Floats;
  return Pairs::joined(__builtin_convertvector(words << (24 - 16 * half) >> 24, Vector),
                       __builtin_convertvector(words << (16 - 16 * half) >> 24, Vector));
}

// Columns lie one behind the other, and a few are read at a time, too little of each for a processor to see by itself
// where that leads: with what is this many bytes ahead asked for, one row takes two thirds of the time, of bytes half.
constexpr int COLUMNS_AHEAD = 8192;

AWQ_INLINE void ask_for_columns(const void* line) {
  __builtin_prefetch(static_cast<const char*>(line) + COLUMNS_AHEAD, 0, 3);
}

// The weights of `dense` (dense.h) as bytes.
struct InBytes {
  // Lanes [LANE, LANE + PARTS * WIDTH) of the sums of ROWS x COLUMNS outputs, the first of them `column`.
  template <class Pairs, int ROWS, int COLUMNS, int LANE, int PARTS>
  static AWQ_INLINE void add_up(const awq_matrix& matrix, const Bf16* x, int64_t column,
                                float (*sums)[COLUMNS][LANES]) {
    using In = Register<Pairs::WIDTH>;
    constexpr int WIDTH = Pairs::WIDTH;
    const int64_t k = matrix.weight.k, groups = byte_groups(k), whole = k / BYTE_GROUP;
    const int8_t* w = matrix.bytes + column * groups * BYTE_GROUP;
    const Bf16* scales = matrix.byte_scales + column * groups;
    typename In::Floats acc[ROWS][COLUMNS][PARTS] = {};
    auto group = [&](int64_t g, const Bf16* inputs, int64_t x_stride) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int c = 0; LANE == 0 && c < COLUMNS; ++c) ask_for_columns(w + (c * groups + g) * BYTE_GROUP);
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) {
        const int lane = LANE + p * WIDTH;
        typename In::Words a[ROWS][HALVES];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
          for (int half = 0; half < HALVES; ++half)
            memcpy(&a[r][half], inputs + r * x_stride + half * PAIRED + 2 * lane, sizeof a[r][half]);
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; ++c) {
          typename In::Ints words;
          memcpy(&words, w + (c * groups + g) * BYTE_GROUP + 4 * lane, sizeof words);
          const auto first = codes_of<Pairs>(words, 0), second = codes_of<Pairs>(words, 1);
          const float scale = widen(scales[c * groups + g]);
#pragma GCC unroll 4
          for (int r = 0; r < ROWS; ++r) {
            const auto sum = Pairs::multiply_add(typename In::Floats{}, a[r][0], first);
            acc[r][c][p] += Pairs::multiply_add(sum, a[r][1], second) * scale;
          }
        }
      }
    };
    for (int64_t g = 0; g < whole; ++g) group(g, x + g * BYTE_GROUP, k);
    if (whole < groups) {
      const int64_t begin = whole * BYTE_GROUP;
      Bf16 last[ROWS][BYTE_GROUP] = {};
      for (int r = 0; r < ROWS; ++r) memcpy(last[r], x + r * k + begin, size_t(k - begin) * sizeof *x);
      group(whole, last[0], BYTE_GROUP);
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS; ++c) memcpy(sums[r][c] + LANE, acc[r][c], sizeof acc[r][c]);
  }
};

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
