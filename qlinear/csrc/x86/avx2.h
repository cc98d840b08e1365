// What the AVX2 instruction sets share: eight rows at a time.
#pragma once

#include <immintrin.h>

#include "../common/int16.h"

namespace awq {
namespace {

struct Avx2Base {
  using Vec = __m256;
  static constexpr int WIDTH = 8, COLUMNS = 2;
  static constexpr bool BY_CHUNK = false;

  static AWQ_INLINE Vec load(const float* from) { return _mm256_loadu_ps(from); }
  static AWQ_INLINE void store(float* to, Vec value) { _mm256_storeu_ps(to, value); }
  static AWQ_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

  static AWQ_INLINE Vec load_bf16(const uint8_t* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static AWQ_INLINE __m256i load_int8(const uint8_t* from) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  static AWQ_INLINE __m256i codes_at(const uint8_t* chunk, int vector) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(chunk + 64 * vector));
  }
};

// Pairs of columns as int16, added up in int32 by Multiply::add(acc, a, b).
template <class Multiply>
struct Avx2Int16 : Avx2Base {
  static constexpr int ACCUMULATORS = 12, ROWS = 6;
  static constexpr int vectors(int) { return 2; }
  static constexpr bool TWO_STEPS = true;
  using Acc = __m256i;
  using Pair = __m256i;    // 8 tile rows x 2 columns of int16
  using Input = uint32_t;  // 2 columns of int16
  using Sum = Int16Sum;

  static AWQ_INLINE Acc multiply_add(Acc acc, Pair weights, const Input* input) {
    return Multiply::add(acc, weights, _mm256_set1_epi32(int(*input)));
  }
  static AWQ_INLINE Acc add(Acc a, Acc b) { return _mm256_add_epi32(a, b); }

  // Minus the zero point, and 256 times that: the weights of the two parts of sum(x).
  template <int BITS>
  static AWQ_INLINE Pair load_zero(const uint8_t* from) {
    const __m256i minus = _mm256_sub_epi32(_mm256_set1_epi32(-(1 << (BITS - 1))), load_int8(from));
    return _mm256_blend_epi16(minus, _mm256_slli_epi32(minus, 24), 0xaa);
  }
  static AWQ_INLINE Vec less_zero(Acc acc, Pair zero, const Sum* sum) {
    const Acc total = multiply_add(acc, zero, &sum->parts);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(sum->scale));
  }

  // Inverting the sign bits of a whole vector makes its codes 0 to 2^BITS - 1; then each is masked where it stands.
  template <int BITS, int MOST>
  struct Unpacker : PlaceSets<BITS, MOST> {
    using At = Places<BITS, PlaceSets<BITS, MOST>::PLACES>;
    struct Codes {
      __m256i lanes;  // the vector that holds the current pairs
      __m256i spare;  // 3 bits: the last pair, as far as the vectors so far have its bits 15 and 31
    };

    static AWQ_INLINE Acc weigh(Acc acc, int set) { return _mm256_srai_epi32(acc, Unpacker::height(set)); }

    template <int P>
    AWQ_INLINE Pair pair(Codes& codes, const uint8_t* chunk) const {
      if constexpr (P == At::IN_FIELDS) return codes.spare;
      if constexpr (P % At::FIELDS == 0) load<P / At::FIELDS>(codes, chunk);
      constexpr int SHIFT = At::shift(P), MASK = ((1 << BITS) - 1) << At::place(P) * BITS;
      return masked(SHIFT == 0 ? codes.lanes : _mm256_srli_epi32(codes.lanes, SHIFT), MASK);
    }

    template <int J>
    static AWQ_INLINE void load(Codes& codes, const uint8_t* chunk) {
      // the spare bit of the third vector is a sign, too
      constexpr int SIGNS = BITS == 4 ? 0x8888 : J == 2 ? 0xc924 : 0x4924;
      codes.lanes = _mm256_xor_si256(codes_at(chunk, J), both_halves(SIGNS));
      if constexpr (BITS == 3) {
        constexpr int BIT = At::place(At::IN_FIELDS) * BITS + J;
        const __m256i bit = masked(_mm256_srli_epi32(codes.lanes, 15 - BIT), 1 << BIT);
        codes.spare = J == 0 ? bit : _mm256_or_si256(codes.spare, bit);
      }
    }

    static AWQ_INLINE __m256i both_halves(int bits) { return _mm256_set1_epi32(int(uint32_t(bits) * 0x00010001)); }
    static AWQ_INLINE __m256i masked(__m256i lanes, int mask) { return _mm256_and_si256(lanes, both_halves(mask)); }
  };
};

// Four bytes by four of a cache of int8, by `Four`.
template <class Four>
struct Avx2Quads {
  static constexpr int ROWS = 4, SUMS = 4, WIDTH = 8;
  using In = Register<WIDTH>;
  static AWQ_INLINE In::Ints multiply_add(In::Ints acc, In::Words unsigned_bytes, In::Words signed_bytes) {
    return (In::Ints)Four::add((__m256i)acc, (__m256i)unsigned_bytes, (__m256i)signed_bytes);
  }
};

}  // namespace
}  // namespace awq
