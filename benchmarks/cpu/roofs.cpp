// What the machine can do at best: bodies for a parallel loop, each the tightest loop of its kind. Compiled for the
// processor at hand.
#include <immintrin.h>
#include <stdint.h>

namespace {

// Accumulators that keep two multiply-add units busy at a latency of 4 to 8 cycles, as far as there are registers.
#ifdef __AVX512F__
constexpr int BYTES = 64, CHAINS = 16;
#else
constexpr int BYTES = 32, CHAINS = 12;
#endif
typedef float Floats __attribute__((vector_size(BYTES)));
typedef uint64_t Words __attribute__((vector_size(BYTES)));

template <class Step>
void repeat(int64_t times, Step step) {
  Floats sum[CHAINS];
#pragma GCC unroll 16
  for (int i = 0; i < CHAINS; ++i) sum[i] = Floats{};  // unrolled, or they would live in memory
  for (int64_t t = 0; t < times; ++t) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) {
      sum[i] = step(sum[i]);
      asm volatile("" : "+v"(sum[i]));
    }
  }
}

struct Memory {
  const uint8_t* bytes;
  int64_t piece;
};

// Pieces [begin, end) of Memory::piece bytes each, prefetching AHEAD vectors ahead (0: not at all).
template <int AHEAD>
void read(int64_t begin, int64_t end, void* context) {
  const Memory& memory = *static_cast<const Memory*>(context);
  const auto* at = reinterpret_cast<const Words*>(memory.bytes + begin * memory.piece);
  const auto* last = reinterpret_cast<const Words*>(memory.bytes + end * memory.piece);
  Words seen[8] = {};
  for (; at < last; at += 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      if (AHEAD != 0) __builtin_prefetch(at + i + AHEAD);
      seen[i] |= at[i];
    }
  }
  for (Words& value : seen) asm volatile("" : "+v"(value));
}

// Pairs of words, and quads of bytes, into sums of 32 bits; where no instruction adds up (AVX2), the products and one
// addition. Those of bytes leave words there, which a kernel has to widen some time.
#if defined(__AVX512VNNI__)
using Integers = __m512i;
Integers words(Integers sum, Integers ones) { return _mm512_dpwssd_epi32(sum, ones, ones); }
Integers bytes(Integers sum, Integers ones) { return _mm512_dpbusd_epi32(sum, ones, ones); }
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
using Integers = __m256i;
Integers words(Integers sum, Integers ones) { return _mm256_dpwssd_avx_epi32(sum, ones, ones); }
Integers bytes(Integers sum, Integers ones) { return _mm256_dpbusd_avx_epi32(sum, ones, ones); }
#elif defined(__AVX2__) && !defined(__AVX512F__)
using Integers = __m256i;
Integers words(Integers sum, Integers ones) { return _mm256_add_epi32(_mm256_madd_epi16(sum, ones), ones); }
Integers bytes(Integers sum, Integers ones) { return _mm256_add_epi16(_mm256_maddubs_epi16(sum, ones), ones); }
#else
#define NO_INTEGERS
#endif

#ifndef NO_INTEGERS
template <Integers (*step)(Integers, Integers)>  // known when it is compiled, or it would be called
void integers(int64_t begin, int64_t end, void* context) {
  Integers ones = (Integers)(Words{} + 0x0101010101010101u);
  asm volatile("" : "+v"(ones));
  repeat((end - begin) * *static_cast<int64_t*>(context),
         [=](Floats sum) { return (Floats)step((Integers)sum, ones); });
}
#endif

}  // namespace

extern "C" {

void roof_read(int64_t begin, int64_t end, void* context) { read<0>(begin, end, context); }

// Faster on some machines.
void roof_read_prefetched(int64_t begin, int64_t end, void* context) { read<10240 / BYTES>(begin, end, context); }

// Floating-point operations of a round of roof_fma; one of roof_bf16 or roof_int16 has twice as many, one of roof_int8
// four times.
int32_t roof_flops(void) { return CHAINS * BYTES / 4 * 2; }

// context: int64_t, the number of rounds for each index; a round is CHAINS instructions.
void roof_fma(int64_t begin, int64_t end, void* context) {
  Floats one = Floats{} + 1.0f;
  asm volatile("" : "+v"(one));
  repeat((end - begin) * *static_cast<int64_t*>(context), [=](Floats sum) { return sum * one + one; });
}

#ifdef __AVX512BF16__
void roof_bf16(int64_t begin, int64_t end, void* context) {
  __m512i ones = _mm512_set1_epi32(0x3f803f80);
  asm volatile("" : "+v"(ones));
  repeat((end - begin) * *static_cast<int64_t*>(context),
         [=](Floats sum) { return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)ones, (__m512bh)ones); });
}
#endif

#ifndef NO_INTEGERS
void roof_int16(int64_t begin, int64_t end, void* context) { integers<words>(begin, end, context); }

void roof_int8(int64_t begin, int64_t end, void* context) { integers<bytes>(begin, end, context); }
#endif

}  // extern "C"
