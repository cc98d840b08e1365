// AVX-512 VNNI: vpdpwssd multiplies a pair of columns at once as int16 and adds in int32, exactly; vpdpbusd four as int8.
#include "../common/attention_fours.h"
#include "../common/int16.h"
#include "avx512int8.h"
#include "avx512vnni.h"
#include "isas.h"

namespace awq {
namespace {

struct Avx512Vnni : Avx512Base {
  static constexpr int ROWS = 12;
  static constexpr int vectors(int) { return 2; }
  static constexpr bool TWO_STEPS = true;
  using Acc = __m512i;
  using Pair = __m512i;    // 16 tile rows x 2 columns of int16
  using Input = uint32_t;  // 2 columns of int16
  using Sum = Int16Sum;

  static AWQ_INLINE Acc multiply_add(Acc acc, Pair weights, const Input* input) {
    return _mm512_dpwssd_epi32(acc, weights, _mm512_set1_epi32(int(*input)));
  }
  static AWQ_INLINE Acc add(Acc a, Acc b) { return _mm512_add_epi32(a, b); }

  // Minus the zero point, and 256 times that: the weights of the two parts of sum(x).
  template <int BITS>
  static AWQ_INLINE Pair load_zero(const uint8_t* from) {
    const __m512i minus = _mm512_sub_epi32(_mm512_set1_epi32(-(1 << (BITS - 1))), load_int8(from));
    return _mm512_mask_blend_epi16(0xaaaaaaaa, minus, _mm512_slli_epi32(minus, 24));
  }
  static AWQ_INLINE Vec less_zero(Acc acc, Pair zero, const Sum* sum) {
    const Acc total = multiply_add(acc, zero, &sum->parts);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(sum->scale));
  }

  // A code is masked where it stands, and inverting its sign bit makes it 0 to 2^BITS - 1: one vpternlogd.
  template <int BITS, int MOST>
  struct Unpacker : PlaceSets<BITS, MOST> {
    using Codes = Avx512Codes<BITS, PlaceSets<BITS, MOST>::PLACES>;
    static AWQ_INLINE Acc weigh(Acc acc, int set) { return _mm512_srai_epi32(acc, Unpacker::height(set)); }

    template <int P>
    AWQ_INLINE Pair pair(Codes& codes, const uint8_t* chunk) const {
      constexpr int AT = Codes::place(P) * BITS, MASK = (1 << BITS) - 1, SIGN = 1 << (BITS - 1);
      // 0x6a: first & second ^ third
      return _mm512_ternarylogic_epi32(_mm512_set1_epi32(MASK * 0x00010001 << AT), codes.template field<P>(chunk),
                                       _mm512_set1_epi32(SIGN * 0x00010001 << AT), 0x6a);
    }
  };
};

}  // namespace

void use_avx512vnni(Ops& ops) {
  // fp32 activations and the decoder stay on AVX-512's fp32 multiply-add, but for a cache of int8.
  set_blocks<Avx512Vnni>(ops.linear_bf16);
  set_int16_rows<16>(ops.linear_bf16, Avx512Vnni::ROWS);
  set_blocks<Avx512Int8<FourAtOnce>>(ops.linear_int8);
  set_int8_rows<16>(ops.linear_int8, Avx512Int8<FourAtOnce>::ROWS);
  ops.attend_int8 = attend<CacheOfBytes<FoursAtOnce<QuadsAtOnce<FourAtOnce>>>>;
}

}  // namespace awq
