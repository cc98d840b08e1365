// AVX-512: four columns at once, unsigned codes times activations as int8 (../common/int8.h), added up in int32.
#pragma once

#include "../common/int8.h"
#include "avx512.h"

namespace awq {
namespace {

// Multiply::add(acc, codes, activations): acc + the four products of each lane.
template <class Multiply>
struct Avx512Int8 : Avx512Base {
  static constexpr int ROWS = 12, COLUMNS = 4;
  static constexpr int vectors(int) { return 2; }
  static constexpr bool TWO_STEPS = false;  // with one row, two steps take an eighth longer
  using Acc = __m512i;
  using Pair = __m512i;    // 16 tile rows x 4 columns of uint8
  using Input = uint32_t;  // 4 columns of int8
  using Sum = Int8Sum;

  static AWQ_INLINE Acc multiply_add(Acc acc, Pair weights, const Input* input) {
    return Multiply::add(acc, weights, _mm512_set1_epi32(int(*input)));
  }
  static AWQ_INLINE Acc add(Acc a, Acc b) { return _mm512_add_epi32(a, b); }

  // The zero point, of unsigned codes.
  template <int BITS>
  static AWQ_INLINE __m512i load_zero(const uint8_t* from) {
    return _mm512_add_epi32(load_int8(from), _mm512_set1_epi32(1 << (BITS - 1)));
  }
  // Its product with the sum takes 16 bits of either: vpmaddwd, a pair of which the upper is 0.
  static AWQ_INLINE Vec less_zero(Acc acc, __m512i zero, const Sum* sum) {
    const Acc total = _mm512_sub_epi32(acc, _mm512_madd_epi16(zero, _mm512_set1_epi32(sum->sum)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(sum->scale));
  }

  template <int BITS, int MOST>
  struct Unpacker;
};

// (lanes & mask) ^ others
AWQ_INLINE __m512i masked(__m512i lanes, int mask, __m512i others) {
  // 0x6a: first & second ^ third
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(mask), lanes, others, 0x6a);
}

// As bytes the low four bits of a vector hold pairs 0 and 2, the high ones pairs 1 and 3.
template <class Multiply>
template <int MOST>
struct Avx512Int8<Multiply>::Unpacker<4, MOST> : EvenSets<(MOST >= 2 ? 2 : 1)> {
  struct Codes { __m512i lanes; };

  template <int P>
  AWQ_INLINE Pair pair(Codes& codes, const uint8_t* chunk) const {
    if constexpr (P % 2 == 0) {
      codes.lanes = _mm512_loadu_si512(chunk + 64 * (P / 2));
      asm("" : "+v"(codes.lanes));  // or gcc loads them again, half of the time across two cache lines
    }
    const __m512i lanes = P % 2 == 0 ? codes.lanes : _mm512_srli_epi32(codes.lanes, 4);
    return masked(lanes, 0x0f0f0f0f, _mm512_set1_epi32(0x08080808));  // inverting a code's sign makes it unsigned
  }
};

// A pair's codes are moved to the lower byte of their halves, or to the upper one.
template <class Multiply>
template <int MOST>
struct Avx512Int8<Multiply>::Unpacker<3, MOST> : EvenSets<(MOST >= 2 ? 2 : 1)> {
  struct Codes {
    __m512i lanes[3];  // vectors, of which two are in use at a time
    __m512i spare;     // bits 15 and 31 of those so far, at the upper byte: the last pair
  };

  template <int P>
  AWQ_INLINE Pair pair(Codes& codes, const uint8_t* chunk) const {
    if constexpr (P == 0) load<0>(codes, chunk);
    if constexpr (P == 2) load<1>(codes, chunk);
    if constexpr (P == 4) load<2>(codes, chunk);
    constexpr int LOW = P / 2 * 4 + P % 2, HIGH = LOW + 2;
    const __m512i high = masked(moved<HIGH, 8>(codes), 0x07000700, _mm512_set1_epi32(0x04040404));
    return masked(moved<LOW, 0>(codes), 0x00070007, high);
  }

  // Of every half lane, the codes of pair P at bit TO; other bits whatever.
  template <int P, int TO>
  static AWQ_INLINE __m512i moved(const Codes& codes) {
    if constexpr (P == 15) return codes.spare;
    constexpr int BY = P % 5 * 3 - TO;
    const __m512i lanes = codes.lanes[P / 5 % 3];
    return BY == 0 ? lanes : BY > 0 ? _mm512_srli_epi32(lanes, BY > 0 ? BY : 0) : _mm512_slli_epi32(lanes, BY < 0 ? -BY : 0);
  }

  template <int J>
  static AWQ_INLINE void load(Codes& codes, const uint8_t* chunk) {
    codes.lanes[J] = _mm512_loadu_si512(chunk + 64 * J);
    asm("" : "+v"(codes.lanes[J]));
    const __m512i bit = _mm512_srli_epi32(codes.lanes[J], 7 - J);
    // 0xca: first ? second : third
    codes.spare =
        J == 0 ? bit : _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x01000100 << J), bit, codes.spare, 0xca);
  }
};

}  // namespace
}  // namespace awq
