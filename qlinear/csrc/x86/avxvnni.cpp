// AVX-VNNI: vpdpwssd multiplies a pair of columns at once as int16 and adds in int32, exactly, without AVX-512; vpdpbusd
// four as int8.
#include "avx2int8.h"

#include "../common/attention_fours.h"
#include "isas.h"

namespace awq {

#ifdef __AVXVNNI__

namespace {

struct AtOnce {
  static AWQ_INLINE __m256i add(__m256i acc, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(acc, a, b); }
};

struct FourAtOnce {
  static constexpr bool BY_CHUNK = false;
  static AWQ_INLINE __m256i add(__m256i acc, __m256i codes, __m256i activations) {
    return _mm256_dpbusd_avx_epi32(acc, codes, activations);
  }
};

void use(Ops& ops) {
  // fp32 activations and the decoder stay on AVX2's fp32 multiply-add, but for a cache of int8.
  set_blocks<Avx2Int16<AtOnce>>(ops.linear_bf16);
  set_int16_rows<8>(ops.linear_bf16, Avx2Int16<AtOnce>::ROWS);
  set_blocks<Avx2Int8<FourAtOnce>>(ops.linear_int8);
  set_int8_rows<8>(ops.linear_int8, Avx2Int8<FourAtOnce>::ROWS);
  ops.attend_int8 = attend<CacheOfBytes<FoursAtOnce<Avx2Quads<FourAtOnce>>>>;
}

}  // namespace

void (*const use_avxvnni)(Ops& ops) = use;

#else

void (*const use_avxvnni)(Ops& ops) = nullptr;  // the compiler does not know the instructions

#endif

}  // namespace awq
