// AVX-512 BF16: a pair product is one instruction, exact, added in fp32.
#include <immintrin.h>

#include "../common/lane_ops.h"

namespace awq {
namespace {

struct PairsAtOnce {
  static constexpr int ROWS = 8;
  static AWQ_LANES_INLINE Floats multiply_add(Floats acc, Words a, Words b) {
    return (Floats)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }
};

}  // namespace

const Pieces avx512bf16_pieces = pieces_with<PairsAtOnce>();
}  // namespace awq
