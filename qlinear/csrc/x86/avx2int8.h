// AVX2: four columns at once, unsigned codes times activations as int8 (../common/int8.h), added up in int32, or those of
// a chunk in int16 first.
#pragma once

#include "../common/int8.h"
#include "avx2.h"

namespace awq {
namespace {

// Multiply::add(acc, codes, activations): acc + the four products of each lane; where it is BY_CHUNK, of each half of a
// lane the two that are its own, in 16 bits, and Multiply::gather adds the halves to lanes.
template <class Multiply>
struct Avx2Int8 : Avx2Base {
  static constexpr int ACCUMULATORS = 12, ROWS = 6, COLUMNS = 4;
  static constexpr int vectors(int) { return 2; }
  static constexpr bool TWO_STEPS = true, BY_CHUNK = Multiply::BY_CHUNK;
  using Acc = __m256i;
  using Pair = __m256i;    // 8 tile rows x 4 columns of uint8
  using Input = uint32_t;  // 4 columns of int8
  using Sum = Int8Sum;

  static AWQ_INLINE Acc multiply_add(Acc acc, Pair weights, const Input* input) {
    return Multiply::add(acc, weights, _mm256_set1_epi32(int(*input)));
  }
  static AWQ_INLINE Acc gather(Acc acc, Acc of_chunk) { return Multiply::gather(acc, of_chunk); }
  static AWQ_INLINE Acc add(Acc a, Acc b) { return _mm256_add_epi32(a, b); }

  // The zero point, of unsigned codes.
  template <int BITS>
  static AWQ_INLINE __m256i load_zero(const uint8_t* from) {
    return _mm256_add_epi32(load_int8(from), _mm256_set1_epi32(1 << (BITS - 1)));
  }
  // Its product with the sum takes 16 bits of either: vpmaddwd, a pair of which the upper is 0.
  static AWQ_INLINE Vec less_zero(Acc acc, __m256i zero, const Sum* sum) {
    const Acc total = _mm256_sub_epi32(acc, _mm256_madd_epi16(zero, _mm256_set1_epi32(sum->sum)));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(sum->scale));
  }

  template <int BITS, int MOST>
  struct Unpacker;
};

AWQ_INLINE __m256i masked(__m256i lanes, int mask) { return _mm256_and_si256(lanes, _mm256_set1_epi32(mask)); }

// As bytes the low four bits of a vector hold pairs 0 and 2, the high ones pairs 1 and 3.
template <class Multiply>
template <int MOST>
struct Avx2Int8<Multiply>::Unpacker<4, MOST> : EvenSets<(MOST >= 2 && !Multiply::BY_CHUNK ? 2 : 1)> {
  struct Codes { __m256i lanes; };

  template <int P>
  AWQ_INLINE Pair pair(Codes& codes, const uint8_t* chunk) const {
    // inverting a code's sign makes it unsigned
    if constexpr (P % 2 == 0) codes.lanes = _mm256_xor_si256(codes_at(chunk, P / 2), _mm256_set1_epi32(int(0x88888888)));
    return masked(P % 2 == 0 ? codes.lanes : _mm256_srli_epi32(codes.lanes, 4), 0x0f0f0f0f);
  }
};

// A pair's codes are moved to the lower byte of their halves, or to the upper one.
template <class Multiply>
template <int MOST>
struct Avx2Int8<Multiply>::Unpacker<3, MOST> : EvenSets<(MOST >= 2 && !Multiply::BY_CHUNK ? 2 : 1)> {
  struct Codes {
    __m256i lanes[3];  // vectors, of which two are in use at a time
    __m256i spare;     // bits 15 and 31 of those so far, at the upper byte: the last pair
  };

  template <int P>
  AWQ_INLINE Pair pair(Codes& codes, const uint8_t* chunk) const {
    if constexpr (P == 0) load<0>(codes, chunk);
    if constexpr (P == 2) load<1>(codes, chunk);
    if constexpr (P == 4) load<2>(codes, chunk);
    constexpr int LOW = P / 2 * 4 + P % 2, HIGH = LOW + 2;
    return _mm256_or_si256(masked(moved<LOW, 0>(codes), 0x00070007), masked(moved<HIGH, 8>(codes), 0x07000700));
  }

  // Of every half lane, the codes of pair P at bit TO; other bits whatever.
  template <int P, int TO>
  static AWQ_INLINE __m256i moved(const Codes& codes) {
    if constexpr (P == 15) return codes.spare;
    constexpr int BY = P % 5 * 3 - TO;
    const __m256i lanes = codes.lanes[P / 5 % 3];
    if constexpr (BY < 0) return _mm256_slli_epi32(lanes, -BY);
    return BY == 0 ? lanes : _mm256_srli_epi32(lanes, BY < 0 ? 0 : BY);
  }

  template <int J>
  static AWQ_INLINE void load(Codes& codes, const uint8_t* chunk) {
    constexpr int SIGNS = J == 2 ? int(0xc924c924) : 0x49244924;  // the spare bit of the third vector is one, too
    codes.lanes[J] = _mm256_xor_si256(codes_at(chunk, J), _mm256_set1_epi32(SIGNS));
    const __m256i bit = masked(_mm256_srli_epi32(codes.lanes[J], 7 - J), 0x01000100 << J);
    codes.spare = J == 0 ? bit : _mm256_or_si256(codes.spare, bit);
  }
};

}  // namespace
}  // namespace awq
