// AVX-512 BF16: vdpbf16ps multiplies a pair of columns at once, exactly, and adds in fp32.
#include "avx512.h"

namespace awq {
namespace {

struct Avx512Bf16 : Avx512Base {
  static constexpr int ROWS = 12;
  using Pair = __m512i;    // 16 tile rows x 2 columns of bf16
  using Input = uint32_t;  // 2 columns of bf16

  static AWQ_INLINE Vec multiply_add(Vec acc, Pair weights, const Input* input) {
    return _mm512_dpbf16_ps(acc, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(int(*input)));
  }

  // vpermw looks at the low five bits of each index: shifting a code down is enough, whatever lies above it.
  template <int BITS>
  struct Decoder {
    __m512i values;

    Decoder() {
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
    AWQ_INLINE Pair pair(Codes<BITS>& codes, const uint8_t* chunk) const {
      return _mm512_permutexvar_epi16(codes.template field<P>(chunk), values);
    }
  };
};

}  // namespace

void fill_avx512bf16(Table& table) {
  // fp32 activations stay on AVX-512's fp32 multiply-add: rounding them to bf16 is the caller's to decide.
  table.name = "avx512bf16";
  set_blocks<Avx512Bf16>(table.route[0]);
  set_rows<Bf16, Bf16>(table.route[0], Avx512Bf16::ROWS);
}

}  // namespace awq
