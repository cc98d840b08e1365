// AVX-512 (F, BW, DQ, VL): fp32 multiply-add, two columns a step.
#include "avx512.h"

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
  struct Decoder : EvenSets<MOST> {
    using Codes = Avx512Codes<BITS, 1>;
    __m512 values;

    Decoder() {
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

}  // namespace

void fill_avx512(Table& table) {
  table.name = "avx512";
  for (Route& route : table.route) set_blocks<Avx512>(route);
  set_rows<Bf16, float>(table.route[0], Avx512::ROWS);
  set_rows<float, float>(table.route[1], Avx512::ROWS);
  table.pack_tile[0] = pack_tile<3>;
  table.pack_tile[1] = pack_tile<4>;
}

}  // namespace awq
