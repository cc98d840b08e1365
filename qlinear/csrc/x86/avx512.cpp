// AVX-512 (F, BW, DQ, VL): fp32 multiply-add, two columns a step; four of int8.
#include "avx512int8.h"

#include "../common/attention_words.h"
#include "../common/pack_tile.h"
#include "../common/pair_ops.h"
#include "../common/row_ops.h"
#include "isas.h"
#include "now.h"

namespace awq {
namespace {

struct Avx512 : Avx512Float {
  static constexpr int ROWS = 12;
  struct Pair { __m512 even, odd; };
  struct Input { float even, odd; };

  static AWQ_INLINE Vec multiply_add(Vec acc, const Pair& weights, const Input* input) {
    acc = _mm512_fmadd_ps(weights.even, _mm512_set1_ps(input->even), acc);
    return _mm512_fmadd_ps(weights.odd, _mm512_set1_ps(input->odd), acc);
  }

  // vpermps looks at the low four bits of each index. The bit above a 3-bit code may be anything: the table repeats.
  template <int BITS, int MOST>
  struct Unpacker : EvenSets<Avx512::SETS> {
    using Codes = Avx512Codes<BITS, 1>;
    __m512 values;

    Unpacker() {
      alignas(64) float table[16];
      for (int i = 0; i < 16; ++i) {
        const int sign = 1 << (BITS - 1);
        table[i] = float(((i & (2 * sign - 1)) ^ sign) - sign);
      }
      values = _mm512_load_ps(table);
    }

    template <int P>
    AWQ_INLINE Pair pair(Codes& codes, const uint8_t* chunk) const {
      const __m512i even = codes.template field<P>(chunk);
      return {_mm512_permutexvar_ps(even, values), _mm512_permutexvar_ps(_mm512_srli_epi32(even, 16), values)};
    }
  };
};

// vpmaddubsw, whose sums of two products, 2 * 15 * 127 at most, fit 16 bits, and vpmaddwd with ones.
struct FourInSteps {
  static AWQ_INLINE __m512i add(__m512i acc, __m512i codes, __m512i activations) {
    const __m512i twos = _mm512_maddubs_epi16(codes, activations);
    return now(_mm512_add_epi32(acc, _mm512_madd_epi16(twos, _mm512_set1_epi16(1))));
  }
};

// Two products of int16 a lane by vpmaddwd, exact, and an addition: of a cache of int8.
struct PairsOfWords {
  static constexpr int ROWS = 8, SUMS = 16, WIDTH = 16;
  static AWQ_INLINE Ints multiply_add(Ints acc, Ints a, Ints b) {
    return acc + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
  }
};

struct TransposeAvx512 {
  static void block(const uint32_t* words, int64_t row_words, uint32_t (*columns)[TILE]) {
    for (int half = 0; half < TILE; half += HALF_TILE, words += HALF_TILE * row_words) {
      __m512i rows[16], pairs[16], fours[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) rows[r] = _mm512_loadu_si512(words + r * row_words);
#pragma GCC unroll 8
      for (int r = 0; r < 16; r += 2) {
        pairs[r] = _mm512_unpacklo_epi32(rows[r], rows[r + 1]);
        pairs[r + 1] = _mm512_unpackhi_epi32(rows[r], rows[r + 1]);
      }
      // fours[4 * q + j]: rows 4q to 4q + 3 of words j, 4 + j, 8 + j and 12 + j, a quarter each
#pragma GCC unroll 4
      for (int r = 0; r < 16; r += 4) {
        fours[r] = _mm512_unpacklo_epi64(pairs[r], pairs[r + 2]);
        fours[r + 1] = _mm512_unpackhi_epi64(pairs[r], pairs[r + 2]);
        fours[r + 2] = _mm512_unpacklo_epi64(pairs[r + 1], pairs[r + 3]);
        fours[r + 3] = _mm512_unpackhi_epi64(pairs[r + 1], pairs[r + 3]);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        // quarters 0 and 2, 1 and 3 of the words, for rows 0 to 7 and 8 to 15
        const __m512i even_low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
        const __m512i even_high = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
        const __m512i odd_high = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
        _mm512_store_si512(columns[j] + half, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
        _mm512_store_si512(columns[4 + j] + half, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
        _mm512_store_si512(columns[8 + j] + half, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
        _mm512_store_si512(columns[12 + j] + half, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
      }
    }
  }
};

}  // namespace

void use_avx512(Ops& ops) {
  set_blocks<Avx512>(ops.linear_bf16);
  set_rows<Bf16, float>(ops.linear_bf16, Avx512::ROWS);
  set_blocks<Avx512>(ops.linear_f32);
  set_rows<float, float>(ops.linear_f32, Avx512::ROWS);
  set_blocks<Avx512Int8<FourInSteps>>(ops.linear_int8);
  set_int8_rows<16>(ops.linear_int8, Avx512Int8<FourInSteps>::ROWS);
  use_pack_tile<TransposeAvx512>(ops);
  use_row_ops<16>(ops);
  use_pair_ops<PairsByHalves<8, 16, 16>>(ops);
  ops.attend_int8 = attend<CacheOfBytes<FoursAsWords<PairsOfWords>>>;
}

}  // namespace awq
