// AVX-512 VNNI: vpdpbusd.
#pragma once

#include <immintrin.h>

#include "../common/lanes.h"

namespace awq {
namespace {

struct FourAtOnce {
  static AWQ_INLINE __m512i add(__m512i acc, __m512i codes, __m512i activations) {
    return _mm512_dpbusd_epi32(acc, codes, activations);
  }
};

}  // namespace
}  // namespace awq
