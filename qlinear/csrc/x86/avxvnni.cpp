// AVX-VNNI: vpdpwssd multiplies a pair of columns at once as int16 and adds in int32, exactly, without AVX-512.
#include "avx2.h"

namespace awq {

#ifdef __AVXVNNI__

namespace {

struct AtOnce {
  static AWQ_INLINE __m256i add(__m256i acc, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(acc, a, b); }
};

void fill(Table& table) {
  // fp32 activations stay on AVX2's fp32 multiply-add.
  table.name = "avxvnni";
  set_blocks<Avx2Int16<AtOnce>>(table.route[0]);
  set_int16_rows(table.route[0], Avx2Int16<AtOnce>::ROWS);
}

}  // namespace

void (*const fill_avxvnni)(Table& table) = fill;

#else

void (*const fill_avxvnni)(Table& table) = nullptr;  // the compiler does not know the instructions

#endif

}  // namespace awq
