// AVX2: pairs of int16, fours of int8, and FMA's fp32 multiply-add for fp32 activations.
#include "avx2int8.h"

#include "../common/attention_words.h"
#include "../common/pack_tile.h"
#include "../common/pair_ops.h"
#include "../common/row_ops.h"
#include "isas.h"
#include "now.h"

namespace awq {
namespace {

// vpmaddwd, exact, and an addition.
struct MultiplyThenAdd {
  static AWQ_INLINE __m256i add(__m256i acc, __m256i a, __m256i b) {
    return now(_mm256_add_epi32(acc, _mm256_madd_epi16(a, b)));
  }
};

// vpmaddubsw, whose sums of two products, 2 * 15 * 127 at most, fit 16 bits eight times over: all of a chunk's. Then
// vpmaddwd with ones.
struct FourInSteps {
  static constexpr bool BY_CHUNK = true;
  static_assert(CHUNK / 4 * 2 * 15 * 127 < 1 << 15);
  static AWQ_INLINE __m256i add(__m256i acc, __m256i codes, __m256i activations) {
    return now(_mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, activations)));
  }
  static AWQ_INLINE __m256i gather(__m256i acc, __m256i of_chunk) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(of_chunk, _mm256_set1_epi16(1)));
  }
};

// Two products of int16 a lane, of a cache of int8.
struct PairsOfWords {
  static constexpr int ROWS = 4, SUMS = 4, WIDTH = 8;
  using Ints = Register<WIDTH>::Ints;
  static AWQ_INLINE Ints multiply_add(Ints acc, Ints a, Ints b) {
    return (Ints)MultiplyThenAdd::add((__m256i)acc, (__m256i)a, (__m256i)b);
  }
};

struct Avx2 : Avx2Base {
  static constexpr int ACCUMULATORS = 8, ROWS = 4;
  static constexpr int vectors(int rows) { return rows == 1 ? 4 : 2; }  // independent sums enough, of one set
  static constexpr bool TWO_STEPS = false;
  using Acc = __m256;
  using Sum = float;
  struct Pair { __m256 even, odd; };
  struct Input { float even, odd; };

  static AWQ_INLINE Acc add(Acc a, Acc b) { return _mm256_add_ps(a, b); }
  template <int BITS>
  static AWQ_INLINE Vec load_zero(const uint8_t* from) { return _mm256_cvtepi32_ps(load_int8(from)); }
  static AWQ_INLINE Vec less_zero(Acc acc, Vec zero, const Sum* sum) {
    return _mm256_fnmadd_ps(zero, _mm256_set1_ps(*sum), acc);
  }
  static AWQ_INLINE Vec multiply_add(Vec acc, const Pair& weights, const Input* input) {
    acc = _mm256_fmadd_ps(weights.even, _mm256_set1_ps(input->even), acc);
    return _mm256_fmadd_ps(weights.odd, _mm256_set1_ps(input->odd), acc);
  }

  // Pairs are read where they lie: memory operands cost nothing here.
  struct Codes {};
  template <int BITS, int MOST>
  struct Unpacker;
};

// Stored as two's complement: up to the sign bit, down again, done.
template <int MOST>
struct Avx2::Unpacker<4, MOST> : EvenSets<1> {
  using Codes = Avx2::Codes;

  template <int P>
  AWQ_INLINE Pair pair(Codes&, const uint8_t* codes) const {
    const __m256i lanes = codes_at(codes, P / 4);
    const __m256i even = _mm256_srai_epi32(_mm256_slli_epi32(lanes, 28 - P % 4 * 4), 28);
    const __m256i odd = _mm256_srai_epi32(_mm256_slli_epi32(lanes, 12 - P % 4 * 4), 28);
    return {_mm256_cvtepi32_ps(even), _mm256_cvtepi32_ps(odd)};
  }
};

// vpermps looks at the low three bits of each index: a table of the eight values.
template <int MOST>
struct Avx2::Unpacker<3, MOST> : EvenSets<1> {
  using Codes = Avx2::Codes;
  __m256 values = _mm256_setr_ps(0, 1, 2, 3, -4, -3, -2, -1);

  template <int P>
  AWQ_INLINE Pair pair(Codes&, const uint8_t* codes) const {
    const __m256i even = field<P>(codes);
    return {_mm256_permutevar8x32_ps(values, even), _mm256_permutevar8x32_ps(values, _mm256_srli_epi32(even, 16))};
  }

  // Pair P for eight rows: the code of the even column at bit 0, of the odd one at bit 16, other bits whatever.
  template <int P>
  static AWQ_INLINE __m256i field(const uint8_t* codes) {
    if constexpr (P < 15) {
      return _mm256_srli_epi32(codes_at(codes, P / 5), P % 5 * 3);
    } else {
      // the spare bits 15 and 31 of the three vectors, one above the other
      const auto spare = [&](int vector, int mask) __attribute__((always_inline)) {
        return _mm256_and_si256(_mm256_srli_epi32(codes_at(codes, vector), 15 - vector), _mm256_set1_epi32(mask));
      };
      return _mm256_or_si256(_mm256_or_si256(spare(0, 0x00010001), spare(1, 0x00020002)), spare(2, 0x00040004));
    }
  }
};

struct TransposeAvx2 {
  static void block(const uint32_t* words, int64_t row_words, uint32_t (*columns)[TILE]) {
    for (int row = 0; row < TILE; row += 8, words += 8 * row_words)
      for (int word = 0; word < BLOCK; word += 8) transpose_eight(words + word, row_words, columns[word] + row);
  }

  // 8 rows of 8 words.
  static AWQ_INLINE void transpose_eight(const uint32_t* words, int64_t row_words, uint32_t* columns) {
    __m256i rows[8], pairs[8], fours[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) rows[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + r * row_words));
#pragma GCC unroll 4
    for (int r = 0; r < 8; r += 2) {
      pairs[r] = _mm256_unpacklo_epi32(rows[r], rows[r + 1]);
      pairs[r + 1] = _mm256_unpackhi_epi32(rows[r], rows[r + 1]);
    }
    // fours[4 * h + j]: rows 4h to 4h + 3 of words j and 4 + j, a half each
#pragma GCC unroll 2
    for (int r = 0; r < 8; r += 4) {
      fours[r] = _mm256_unpacklo_epi64(pairs[r], pairs[r + 2]);
      fours[r + 1] = _mm256_unpackhi_epi64(pairs[r], pairs[r + 2]);
      fours[r + 2] = _mm256_unpacklo_epi64(pairs[r + 1], pairs[r + 3]);
      fours[r + 3] = _mm256_unpackhi_epi64(pairs[r + 1], pairs[r + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      __m256i* to = reinterpret_cast<__m256i*>(columns + j * TILE);
      __m256i* later = reinterpret_cast<__m256i*>(columns + (4 + j) * TILE);
      _mm256_store_si256(to, _mm256_permute2x128_si256(fours[j], fours[4 + j], 0x20));
      _mm256_store_si256(later, _mm256_permute2x128_si256(fours[j], fours[4 + j], 0x31));
    }
  }
};

}  // namespace

void use_avx2(Ops& ops) {
  set_blocks<Avx2Int16<MultiplyThenAdd>>(ops.linear_bf16);
  set_int16_rows<8>(ops.linear_bf16, Avx2Int16<MultiplyThenAdd>::ROWS);
  set_blocks<Avx2>(ops.linear_f32);
  set_rows<float, float>(ops.linear_f32, Avx2::ROWS);
  set_blocks<Avx2Int8<FourInSteps>>(ops.linear_int8);
  set_int8_rows<8>(ops.linear_int8, Avx2Int8<FourInSteps>::ROWS);
  use_pack_tile<TransposeAvx2>(ops);
  use_row_ops<8>(ops);
  use_pair_ops<PairsByHalves<4, 4, 8>>(ops);
  ops.attend_int8 = attend<CacheOfBytes<FoursAsWords<PairsOfWords>>>;
}

}  // namespace awq
