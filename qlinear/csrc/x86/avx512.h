// What the AVX-512 instruction sets share.
#pragma once

#include <immintrin.h>

#include "../common/block.h"

namespace awq {
namespace {

struct Avx512Base {
  using Vec = __m512;
  static constexpr int WIDTH = 16, ACCUMULATORS = 24, COLUMNS = 2;
  static constexpr bool BY_CHUNK = false;

  static AWQ_INLINE Vec load(const float* from) { return _mm512_loadu_ps(from); }
  static AWQ_INLINE void store(float* to, Vec value) { _mm512_storeu_ps(to, value); }
  static AWQ_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

  static AWQ_INLINE Vec load_bf16(const uint8_t* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static AWQ_INLINE __m512i load_int8(const uint8_t* from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
};

// The codes of 16 rows, a vector at a time: field<P>(chunk) for P = 0, 1, 2, ... gives pair P with its codes at
// place(P), other bits whatever.
template <int BITS, int PLACES>
struct Avx512Codes : Places<BITS, PLACES> {
  using At = Places<BITS, PLACES>;
  __m512i lanes;  // the vector that holds the current pairs
  __m512i spare;  // 3 bits: bits 15 and 31 of the vectors so far, one above the other: the last pair

  template <int P>
  AWQ_INLINE __m512i field(const uint8_t* chunk) {
    if constexpr (P == At::IN_FIELDS) return spare;
    if constexpr (P % At::FIELDS == 0) load<P / At::FIELDS>(chunk);
    return At::shift(P) == 0 ? lanes : _mm512_srli_epi32(lanes, At::shift(P));
  }

  template <int J>
  AWQ_INLINE void load(const uint8_t* chunk) {
    lanes = _mm512_loadu_si512(chunk + 64 * J);
    asm("" : "+v"(lanes));  // or gcc loads them again for every field, half of the time across two cache lines
    if constexpr (BITS == 3) {
      constexpr int AT = At::place(At::IN_FIELDS) * BITS + J;
      const __m512i bit = _mm512_srli_epi32(lanes, 15 - AT);
      // 0xca: first ? second : third
      spare = J == 0 ? bit : _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x00010001 << AT), bit, spare, 0xca);
    }
  }
};

// Codes as bf16. vpermw looks at the low five bits of each index: shifting a code down is enough, whatever lies above.
template <int BITS>
struct Avx512Values {
  using Codes = Avx512Codes<BITS, 1>;
  __m512i values;

  Avx512Values() {
    alignas(64) uint16_t table[32];
    for (int i = 0; i < 32; ++i) {
      const int sign = 1 << (BITS - 1), code = ((i & (2 * sign - 1)) ^ sign) - sign;
      const float value = float(code);
      uint32_t word;
      memcpy(&word, &value, sizeof word);
      table[i] = uint16_t(word >> 16);
    }
    values = _mm512_load_si512(table);
  }

  template <int P>
  AWQ_INLINE __m512i pair(Codes& codes, const uint8_t* chunk) const {
    return _mm512_permutexvar_epi16(codes.template field<P>(chunk), values);
  }
};

// Products summed in fp32.
struct Avx512Float : Avx512Base {
  static constexpr int SETS = 2;
  // Half a tile where there are not accumulators for the sets of a whole one.
  static constexpr int vectors(int rows) { return 2 * SETS * rows <= ACCUMULATORS ? 2 : 1; }
  static constexpr bool TWO_STEPS = false;
  using Acc = __m512;
  using Sum = float;

  static AWQ_INLINE Acc add(Acc a, Acc b) { return _mm512_add_ps(a, b); }
  template <int BITS>
  static AWQ_INLINE Vec load_zero(const uint8_t* from) { return _mm512_cvtepi32_ps(load_int8(from)); }
  static AWQ_INLINE Vec less_zero(Acc acc, Vec zero, const Sum* sum) {
    return _mm512_fnmadd_ps(zero, _mm512_set1_ps(*sum), acc);
  }
};

// Four bytes by four of a cache of int8, by `Four`.
template <class Four>
struct QuadsAtOnce {
  static constexpr int ROWS = 8, SUMS = 16, WIDTH = 16;
  static AWQ_INLINE Ints multiply_add(Ints acc, Words unsigned_bytes, Words signed_bytes) {
    return (Ints)Four::add((__m512i)acc, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
  }
};

}  // namespace
}  // namespace awq
