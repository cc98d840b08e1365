// AVX-512 BF16: vdpbf16ps multiplies a pair of columns at once, exactly, and adds in fp32.
#include <x86intrin.h>

#include "../common/pair_ops.h"
#include "avx512.h"
#include "isas.h"

namespace awq {
namespace {

struct Avx512Bf16 : Avx512Float {
  static constexpr int ROWS = 12;
  using Pair = __m512i;    // 16 tile rows x 2 columns of bf16
  using Input = uint32_t;  // 2 columns of bf16

  static AWQ_INLINE Vec multiply_add(Vec acc, Pair weights, const Input* input) {
    return _mm512_dpbf16_ps(acc, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(int(*input)));
  }

  template <int BITS, int MOST>
  struct Unpacker : EvenSets<Avx512Bf16::SETS>, Avx512Values<BITS> {};
};

// The decoder's products of bf16 pairs.
struct PairsAtOnce {
  static constexpr int ROWS = 8, SUMS = 16, WIDTH = 16;
  using Same = Bf16;
  static AWQ_INLINE Words joined(Floats even, Floats odd) { return (Words)even >> 16 | ((Words)odd & 0xffff0000u); }
  static AWQ_INLINE Floats multiply_add(Floats acc, Words a, Words b) {
    return (Floats)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }
  static AWQ_INLINE Floats multiply_add(Floats acc, Words a, const Bf16* same) {
    return multiply_add(acc, a, broadcast(same));
  }
  static AWQ_INLINE Floats keep(Floats value, Bf16* to) {
    const Halves rounded = (Halves)_mm512_cvtneps_pbh((__m512)value);
    memcpy(to, &rounded, sizeof rounded);
    return widen(rounded);
  }
};

// Ticks that a burst of independent instructions takes, enough of them to fill two units at a latency of 8 cycles.
template <class Step>
uint64_t ticks(Step step) {
  constexpr int ROUNDS = 64;
  __m512 sum[PAIRS];  // in registers: every index is a constant, at any level of optimization
  for_each(ChunkPairs{}, [&](auto p) __attribute__((always_inline)) { sum[decltype(p)::value] = _mm512_setzero_ps(); });
  const uint64_t start = __rdtsc();
  for (int round = 0; round < ROUNDS; ++round) {
    for_each(ChunkPairs{}, [&](auto p) __attribute__((always_inline)) {
      __m512& value = sum[decltype(p)::value];
      value = step(value);
      asm volatile("" : "+v"(value));  // one by one, and none left out
    });
  }
  return __rdtsc() - start;
}

}  // namespace

bool bf16_pairs_are_fast() {
  constexpr int REPEATS = 24;  // in turns, and the least of each: an interrupt or a change of clock spoils but a few
  uint64_t pairs = UINT64_MAX, singles = UINT64_MAX;
  __m512 zero = _mm512_setzero_ps();
  asm("" : "+v"(zero));  // not for the compiler to know
  for (int repeat = 0; repeat < REPEATS; ++repeat) {
    const uint64_t a = ticks([=](__m512 sum) __attribute__((always_inline)) {
      return _mm512_dpbf16_ps(sum, (__m512bh)zero, (__m512bh)zero);
    });
    const uint64_t b = ticks([=](__m512 sum) __attribute__((always_inline)) {
      return _mm512_fmadd_ps(zero, zero, sum);
    });
    pairs = a < pairs ? a : pairs;
    singles = b < singles ? b : singles;
  }
  return pairs < 2 * singles;
}

void use_avx512bf16(Ops& ops) {
  // fp32 activations stay on AVX-512's fp32 multiply-add: rounding them to bf16 is the caller's to decide.
  set_blocks<Avx512Bf16>(ops.linear_bf16);
  set_rows<Bf16, Bf16>(ops.linear_bf16, Avx512Bf16::ROWS);
  use_pair_ops<PairsAtOnce>(ops);
}

}  // namespace awq
