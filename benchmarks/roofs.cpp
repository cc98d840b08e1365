// What the machine can do at best: bodies for a parallel loop, each the tightest loop of its kind.
#include <immintrin.h>
#include <stdint.h>

namespace {

// Accumulators that keep two multiply-add units busy at a latency of 6 to 8 cycles; with 12 they are not.
constexpr int CHAINS = 16;

template <class Step>
void repeat(int64_t times, Step step) {
  __m512 sum[CHAINS];
#pragma GCC unroll 16
  for (int i = 0; i < CHAINS; ++i) sum[i] = _mm512_setzero_ps();  // unrolled, or they would live in memory
  for (int64_t t = 0; t < times; ++t) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) {
      sum[i] = step(sum[i]);
      asm volatile("" : "+v"(sum[i]));
    }
  }
}

}  // namespace

extern "C" {

struct Memory {
  const uint8_t* bytes;
  int64_t piece;
};

// Read the pieces [begin, end) of Memory::piece bytes each.
void roof_read(int64_t begin, int64_t end, void* context) {
  const Memory& memory = *static_cast<const Memory*>(context);
  const auto* at = reinterpret_cast<const __m512i*>(memory.bytes + begin * memory.piece);
  const auto* last = reinterpret_cast<const __m512i*>(memory.bytes + end * memory.piece);
  __m512i seen[8] = {};
  for (; at < last; at += 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) seen[i] = _mm512_or_si512(seen[i], at[i]);
  }
  for (__m512i& value : seen) asm volatile("" : "+v"(value));
}

// The same with software prefetch, which is faster on some machines.
void roof_read_prefetched(int64_t begin, int64_t end, void* context) {
  const Memory& memory = *static_cast<const Memory*>(context);
  const auto* at = reinterpret_cast<const __m512i*>(memory.bytes + begin * memory.piece);
  const auto* last = reinterpret_cast<const __m512i*>(memory.bytes + end * memory.piece);
  __m512i seen[8] = {};
  for (; at < last; at += 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(at + i + 160), _MM_HINT_T0);
      seen[i] = _mm512_or_si512(seen[i], at[i]);
    }
  }
  for (__m512i& value : seen) asm volatile("" : "+v"(value));
}

// context: int64_t, the number of rounds for each index; a round is CHAINS instructions.
void roof_fma(int64_t begin, int64_t end, void* context) {
  __m512 one = _mm512_set1_ps(1.0f);
  asm volatile("" : "+v"(one));
  repeat((end - begin) * *static_cast<int64_t*>(context), [=](__m512 sum) { return _mm512_fmadd_ps(one, one, sum); });
}

void roof_bf16(int64_t begin, int64_t end, void* context) {
  __m512i ones = _mm512_set1_epi32(0x3f803f80);
  asm volatile("" : "+v"(ones));
  repeat((end - begin) * *static_cast<int64_t*>(context),
         [=](__m512 sum) { return _mm512_dpbf16_ps(sum, (__m512bh)ones, (__m512bh)ones); });
}

}  // extern "C"
