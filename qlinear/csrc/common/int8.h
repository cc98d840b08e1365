// Activation rows as int8 with one scale for each group of a row, where the caller asks for that (awq_weight.int8), for
// instructions that multiply four unsigned by four signed bytes.
//
// x = scale * integer, |integer| <= 127: scale = largest |x| of the group / 127, integer = x * steps rounded to nearest,
// ties to even, steps = 127 / largest with its last eight bits cleared. So x, a bf16 value of eight significant bits,
// times steps, which has sixteen, is exact in fp32, and every compiler and instruction set finds the same integers.
// Clearing the bits takes up to 2^-15 of steps, and thus up to 127 * 2^-15 = 1/258 off what is rounded.
//   |x - scale * integer| <= (1/2 + 1/256) * scale
//
// Codes and zero points are 0 to 2^bits - 1 here, and a group has 256 columns at most:
//   |sum(code * integer) - zero * sum(integer)| <= 256 * 15 * 127 < 2^19
// which int32 and fp32 hold exactly, as int16 does a group's sum of integers, 256 * 127 < 2^15. For each group
//   y = fma(scale of the weight, difference * scale of the group, y)
// with one rounding each: a result has the same bits on every instruction set.
#pragma once

#include "rows.h"

namespace awq {
namespace {

// What is kept of a row's group besides its values.
struct Int8Sum {
  float scale;  // NaN where a value of the group is infinite or NaN; its integers are 0 then
  int32_t sum;  // of the integers
};

// Of eight or sixteen columns, a byte each, quads as unpacked codes have them (layout.h): of every eight columns those of
// pairs 0 and 2, then those of pairs 1 and 3, even columns before odd ones.
using EightBytes = Register<8>::Bytes;
using SixteenBytes = Sixteen::Bytes;
constexpr int column_of_quad(int quad, int place) { return 2 * quad + place % 2 * 4 + place / 2; }  // of the eight
AWQ_INLINE EightBytes to_quads(EightBytes columns) { return AWQ_PLACED(EightBytes, columns, 0, 4, 1, 5, 2, 6, 3, 7); }
AWQ_INLINE SixteenBytes to_quads(SixteenBytes columns) {
  return AWQ_PLACED(SixteenBytes, columns, 0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
}

// `In::LANES` columns at a time, in the order that `place` puts them. out: room for whole vectors.
template <class In, class Place>
AWQ_INLINE Int8Sum to_integers(const Bf16* x, int64_t count, int8_t* out, Place&& place) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: a sum with it ends in the nearest integer, ties to even
  constexpr int32_t ROUND_BITS = 0x4b400000;
  constexpr float MOST = 127.0f;
  constexpr uint16_t INFINITE = 0x7f80, LEAST = 0x0780;  // 2^-112: steps and scales are normal numbers
  const uint16_t bits = largest_bits(x, count);
  if (bits >= INFINITE) {
    memset(out, 0, size_t(count));
    return {__builtin_nanf(""), 0};
  }
  const float largest = widen(bits < LEAST ? LEAST : bits);
  float steps = MOST / largest;
  uint32_t word;
  memcpy(&word, &steps, sizeof word);
  word &= 0xffffff00;
  memcpy(&steps, &word, sizeof steps);
  typename In::Ints sums = {};
  for (int64_t i = 0; i < count; i += In::LANES) {
    const auto integers = (typename In::Ints)(load<In>(x + i) * steps + ROUND) - ROUND_BITS;
    const auto placed = place(__builtin_convertvector(integers, typename In::Bytes));
    memcpy(out + i, &placed, sizeof placed);
    sums += integers;
  }
  int32_t lane[In::LANES], sum = 0;
  memcpy(lane, &sums, sizeof lane);
  for (const int32_t part : lane) sum += part;
  return {largest / MOST, sum};
}

template <class In>
AWQ_INLINE Int8Sum to_integers(const Bf16* x, int64_t count, int8_t* out) {
  return to_integers<In>(x, count, out, [](auto columns) { return columns; });
}

// WIDTH: lanes of a register.
template <int WIDTH>
void lay_out_int8(const InputRows& in, void* out, void* sums_out) {
  constexpr int64_t QUAD = 4;
  const int64_t rows = in.rows, group_size = in.group_size;
  const Bf16* group = static_cast<const Bf16*>(in.x);
  int8_t* quads = static_cast<int8_t*>(out);
  Int8Sum* sums = static_cast<Int8Sum*>(sums_out);
  for (int64_t g = 0; g < in.k / group_size; ++g, group += group_size, quads += group_size * rows, sums += rows) {
    for (int64_t r = 0; r < rows; ++r) {
      int8_t row[MAX_GROUP];
      using In = Register<(WIDTH > 8 ? WIDTH : 8)>;
      sums[r] = to_integers<In>(group + r * in.stride, group_size, row, [](auto columns) { return to_quads(columns); });
      // (k) -> (k / 4, rows, 4)
      for (int64_t q = 0; q < group_size / QUAD; ++q) memcpy(quads + QUAD * (q * rows + r), row + QUAD * q, QUAD);
    }
  }
}

template <int WIDTH>
void set_int8_rows(Route& route, int64_t rows) {
  route.rows = rows;
  route.in_bytes = route.out_bytes = sizeof(Bf16);
  route.element_bytes = sizeof(int8_t);
  route.sum_bytes = sizeof(Int8Sum);
  route.lay_out = lay_out_int8<WIDTH>;
  route.store_rows = store_rows<Bf16>;
}

}  // namespace
}  // namespace awq
