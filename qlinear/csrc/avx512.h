// What the two AVX-512 instruction sets share.
#pragma once

#include <immintrin.h>

#include "block.h"

namespace awq {
namespace {

struct Avx512Base {
  using Vec = __m512;
  static constexpr int LANES = 16, VECTORS = 2, ACCUMULATORS = 24;

  static AWQ_INLINE Vec zero() { return _mm512_setzero_ps(); }
  static AWQ_INLINE Vec load(const float* from) { return _mm512_loadu_ps(from); }
  static AWQ_INLINE void store(float* to, Vec value) { _mm512_storeu_ps(to, value); }
  static AWQ_INLINE Vec broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static AWQ_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static AWQ_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static AWQ_INLINE Vec subtract_product(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(b, c, a); }
  static AWQ_INLINE void prefetch(const uint8_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0); }

  static AWQ_INLINE Vec load_bf16(const uint8_t* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static AWQ_INLINE Vec load_int8(const uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }

  static AWQ_INLINE __m512i codes_at(const uint8_t* codes, int vector) {
    return _mm512_loadu_si512(codes + 64 * vector);
  }

  // Pair P of a chunk for 16 rows: the even column's code at bit 0, the odd one's at bit 16, other bits whatever.
  template <int BITS, int P>
  static AWQ_INLINE __m512i field(const uint8_t* codes) {
    constexpr int FIELDS = 16 / BITS;
    if constexpr (P < FIELDS * BITS) {
      return _mm512_srli_epi32(codes_at(codes, P / FIELDS), P % FIELDS * BITS);
    } else {
      // the spare bits 15 and 31 of the three vectors, one above the other; 0xca: first ? second : third
      const __m512i low = _mm512_srli_epi32(codes_at(codes, 0), 15);
      const __m512i middle = _mm512_srli_epi32(codes_at(codes, 1), 14);
      const __m512i high = _mm512_srli_epi32(codes_at(codes, 2), 13);
      const __m512i two = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x00020002), middle, low, 0xca);
      return _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x00040004), high, two, 0xca);
    }
  }
};

}  // namespace
}  // namespace awq
