// Activation rows as int16 with one power of two for each group of a row ("block scaling"), for instruction sets that
// multiply pairs of int16 and add up in int32.
//
// x = scale * integer, |integer| <= 32640: with |x| < 2^(e + 1) throughout the group, the step is 2^(e - 14). A bf16
// value has eight significant bits, so from 2^(e - 7) up it is a multiple of the step and exact; a smaller one is off
// by half a step at most, 2^-15 of the group's largest.
//
// Sums of a group are exact in int32. Codes are 0 to 15 here and a group has 256 columns at most:
//   |sum(code * x) - zero * sum(x)| <= 2 * 256 * 15 * 32640 < 2^28
// and a set of accumulators whose codes stand `height` bits up holds some of the columns only (layout.h):
//   4 bits, height 4: every other field, 128 columns of 15 * 2^4 * 32640 < 2^30
//   3 bits, height 6: field 2 and the pair in no field, 64 columns of 7 * 2^6 * 32640 < 2^30; less at height 3
// Then the group's sum is rounded to fp32, once.
#pragma once

#include "block.h"

namespace awq {
namespace {

// What is kept of a row's group besides its values.
struct Int16Sum {
  float scale;     // NaN where a value of the group is infinite or NaN; its integers are 0 then
  uint32_t parts;  // the integers' sum as a pair of int16: the lower its last eight bits, the upper what is above
};

inline float power_of_two(int exponent) {
  const uint32_t word = uint32_t(exponent + 127) << 23;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

// e, the exponent of the largest value: |x| < 2^(e + 1). 128: one is infinite or NaN; -127: all are less than normal.
inline int largest_exponent(const Bf16* x, int64_t count) { return (largest_bits(x, count) >> 7) - 127; }

// WIDTH: lanes of a register.
template <int WIDTH>
AWQ_INLINE Int16Sum to_int16(const Bf16* x, int64_t count, int16_t* out) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: a sum with it ends in the nearest integer, ties to even
  constexpr int32_t ROUND_BITS = 0x4b400000;
  constexpr int STEP = 14, INFINITE = 128;
  constexpr int LOWEST = STEP - 126;  // steps and their inverses are normal numbers; a group of zeros needs no more
  int exponent = largest_exponent(x, count);
  if (exponent == INFINITE) {
    memset(out, 0, size_t(count) * sizeof *out);
    return {__builtin_nanf(""), 0};
  }
  if (exponent < LOWEST) exponent = LOWEST;
  const float steps = power_of_two(STEP - exponent);
  using In = Register<WIDTH>;
  typename In::Ints sums = {};
  for (int64_t i = 0; i < count; i += WIDTH) {
    const auto integers = (typename In::Ints)(load<In>(x + i) * steps + ROUND) - ROUND_BITS;
    const auto short_integers = __builtin_convertvector(integers, typename In::Shorts);
    memcpy(out + i, &short_integers, sizeof short_integers);
    sums += integers;
  }
  int32_t lane[WIDTH], sum = 0;
  memcpy(lane, &sums, sizeof lane);
  for (const int32_t part : lane) sum += part;
  return {power_of_two(exponent - STEP), (uint32_t(sum) & 0xff) | (uint32_t(sum) >> 8 << 16)};
}

template <int WIDTH>
void lay_out_int16(const InputRows& in, void* out, void* sums_out) {
  const int64_t rows = in.rows, group_size = in.group_size;
  const Bf16* group = static_cast<const Bf16*>(in.x);
  int16_t* pairs = static_cast<int16_t*>(out);
  Int16Sum* sums = static_cast<Int16Sum*>(sums_out);
  for (int64_t g = 0; g < in.k / group_size; ++g, group += group_size, pairs += group_size * rows, sums += rows) {
    if (rows == 1) {
      sums[0] = to_int16<WIDTH>(group, group_size, pairs);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      int16_t row[MAX_GROUP];
      sums[r] = to_int16<WIDTH>(group + r * in.stride, group_size, row);
      // (k) -> (k / 2, rows, 2), as in lay_out
      for (int64_t p = 0; p < group_size / 2; ++p) copy_pair(row + 2 * p, pairs + 2 * (p * rows + r));
    }
  }
}

// Sets of accumulators by the place of codes (block.h): codes that stand higher are added up apart, and the sum is
// shifted down once a group. Of 4 bits there are two sets of each where they can be had, or sums would wait for
// themselves.
template <int BITS, int MOST>
struct PlaceSets {
  static constexpr int PLACES = BITS == 4 ? (MOST >= 2 ? 2 : 1) : MOST >= 3 ? 3 : 1;
  static constexpr int SETS = BITS == 4 && MOST >= 4 ? 4 : PLACES;
  static constexpr int set(int pair) { return SETS > PLACES ? pair % SETS : Places<BITS, PLACES>::place(pair); }
  static constexpr int height(int set) { return set % PLACES * BITS; }
};

template <int WIDTH>
void set_int16_rows(Route& route, int64_t rows) {
  route.rows = rows;
  route.in_bytes = route.out_bytes = sizeof(Bf16);
  route.element_bytes = sizeof(int16_t);
  route.sum_bytes = sizeof(Int16Sum);
  route.lay_out = lay_out_int16<WIDTH>;
  route.store_rows = store_rows<Bf16>;
}

}  // namespace
}  // namespace awq
