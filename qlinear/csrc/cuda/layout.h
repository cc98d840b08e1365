// How a weight lies in the GPU's memory, and how a warp reads it.
//
// Rows come in tiles of 16, columns in units of 64: what a warp multiplies at a time, as the 16-row operand of four
// mma. A unit is 32 codes a lane, in the order in which the lane needs them, so that nothing is ever moved between lanes:
//   codes    (tiles, units, 32 lanes, BITS words)
//   records  (tiles, groups, 48 bytes): 16 scales, bf16, then 16 zeros, one byte each; row i beside row i + 8
// Rows and columns that pad the last tile and unit have scale 0.
//
// With t = lane % 4 and g = lane / 4, a lane's codes are those of rows g and g + 8 in columns 8t .. 8t + 7 and
// 32 + 8t .. 32 + 8t + 7: pair i of a row, 8 of them, is columns 32 * (i / 4) + 8t + 2 * (i % 4) and the next.
//   4 bits: pair i of row r (0: g, 1: g + 8) is in word 2 * (i / 4) + r, bits 4 * (i % 4) and 16 more.
//   3 bits: pairs 0 to 7 of row g, then those of row g + 8, five to a word, bits 3 * (number % 5) and 16 more; the last,
//           number 15, is in bits 15 and 31 of the three words, its lowest bit in the first.
#pragma once

#include "ptx.h"

namespace awq {

typedef unsigned short Bf16;

constexpr int TILE = 16, UNIT = 64, LANES = 32, RECORD = 48;
constexpr int PAIRS = 8;  // of a row, a lane's

struct Weight {
  const unsigned* codes;
  const unsigned char* records;
  const float* bias;  // (n) or null
  int n, k, group_size, unused;
};

AWQ_DEVICE int divide_up(int a, int b) { return (a + b - 1) / b; }
AWQ_DEVICE int units_of(int k) { return divide_up(k, UNIT); }
// Groups of 32 come in twos, those of the last unit too.
AWQ_DEVICE int groups_of(int k, int group_size) { return group_size < UNIT ? units_of(k) * (UNIT / group_size) : k / group_size; }

AWQ_DEVICE float widen(unsigned bits) { return __uint_as_float(bits << 16); }
AWQ_DEVICE float widen_high(unsigned bits) { return __uint_as_float(bits & 0xffff0000u); }
AWQ_DEVICE unsigned narrow(float value) {  // to nearest, ties to even
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
AWQ_DEVICE unsigned narrow_pair(float low, float high) { return narrow(low) | narrow(high) << 16; }

// A lane's words of a unit.
template <int BITS>
AWQ_DEVICE void load_words(const void* codes, unsigned (&words)[BITS]) {
  const unsigned* from = static_cast<const unsigned*>(codes) + threadIdx.x % LANES * BITS;
  if (BITS == 4) {
    const uint4 all = *reinterpret_cast<const uint4*>(from);
    words[0] = all.x, words[1] = all.y, words[2] = all.z, words[BITS - 1] = all.w;
  } else {
#pragma unroll
    for (int i = 0; i < BITS; ++i) words[i] = from[i];
  }
}

// A code of p more bits below the top of bf16's mantissa is exact: 0x4300 | q << p is 128 + q * 2^p. One multiply-add
// makes q - z of it, exactly too.
constexpr unsigned OFFSET = 0x43004300;  // 128, twice

template <int BITS> struct Unpacker;

template <>
struct Unpacker<4> {
  unsigned less[2];  // of rows g and g + 8: -(128 + zero), twice

  AWQ_DEVICE explicit Unpacker(unsigned zeros) {  // two bytes: of rows g and g + 8
    less[0] = __byte_perm(zeros, 0xc300, 0x5050);
    less[1] = __byte_perm(zeros, 0xc300, 0x5151);
  }

  AWQ_DEVICE unsigned pair(const unsigned (&words)[4], int row, int i) const {
    const unsigned field = words[i / 4 * 2 + row] >> (4 * (i % 4));
    return fma_bf16x2(masked_or(field, 0x000f000f, OFFSET), 0x3f803f80, less[row]);
  }
};

template <>
struct Unpacker<3> {
  unsigned less[2][4];  // for fields that stand p bits high: -(128 / 2^p + zero), twice

  AWQ_DEVICE explicit Unpacker(unsigned zeros) {
    less[0][0] = __byte_perm(zeros, 0xc300, 0x5050);
    less[1][0] = __byte_perm(zeros, 0xc300, 0x5151);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      less[row][1] = fma_bf16x2(less[row][0], 0x3f803f80, 0x42804280);  // + 64
      less[row][2] = fma_bf16x2(less[row][0], 0x3f803f80, 0x42c042c0);  // + 96
      less[row][3] = fma_bf16x2(less[row][0], 0x3f803f80, 0x42e042e0);  // + 112
    }
  }

  AWQ_DEVICE unsigned pair(const unsigned (&words)[3], int row, int i) const {
    const int number = row * PAIRS + i, word = number / 5, field = number % 5;
    if (number == 15) {
      const unsigned low = masked_or(words[0] >> 12, 0x00080008, OFFSET);
      const unsigned both = masked_or(words[1] >> 11, 0x00100010, low);
      return less_zero(masked_or(words[2] >> 10, 0x00200020, both), row, 3);
    }
    // neighbouring fields share a shift; the last one's is one that the spare bit above it can use too
    const int shift = field < 4 ? field / 2 * 6 : 12 - word, place = field < 4 ? field % 2 * 3 : word;
    return less_zero(masked_or(words[word] >> shift, 0x00070007u << place, OFFSET), row, place);
  }

  AWQ_DEVICE unsigned less_zero(unsigned value, int row, int place) const {
    constexpr unsigned FACTORS[4] = {0x3f803f80, 0x3f003f00, 0x3e803e80, 0x3e003e00};  // 2^-place
    return fma_bf16x2(value, FACTORS[place], less[row][place]);
  }
};

}  // namespace awq
