// What an x86-64 processor has, and the table of its instruction sets.
#include "../common/processor.h"

#include <cpuid.h>
#include <immintrin.h>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "isas.h"

namespace awq {
namespace {

struct Cpu {
  bool avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx;
};

// The registers that the operating system saves: without it, an instruction set that cpuid shows cannot be used.
uint64_t xgetbv() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

// Linux keeps tiles for those alone that have asked for them: for this process, all of its threads and its children.
bool tiles_are_granted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int REQUEST_STATE = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST_STATE, TILE_DATA) == 0;
#else
  return false;
#endif
}

Cpu detect() {
  constexpr uint32_t FMA = 1u << 12, OSXSAVE = 1u << 27;                                         // leaf 1, ecx
  constexpr uint32_t AVX2 = 1u << 5, F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31;  // leaf 7, ebx
  constexpr uint32_t VNNI = 1u << 11;                                                            // leaf 7, ecx
  constexpr uint32_t TILES = 1u << 24 | 1u << 25 | 1u << 22;  // themselves, of int8, of bf16      // leaf 7, edx
  constexpr uint32_t AVX_VNNI = 1u << 4, BF16 = 1u << 5;                                         // leaf 7.1, eax
  constexpr uint64_t YMM_STATE = 0x06, ZMM_STATE = 0xe6, TILE_STATE = 0x60000;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & OSXSAVE) == 0) return {};
  const bool fma = (c & FMA) != 0;
  const uint64_t state = xgetbv();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
  const uint32_t features = b, more = c, most = d, wanted = F | DQ | BW | VL;
  uint32_t sub_a = 0;
  if (a >= 1) __get_cpuid_count(7, 1, &sub_a, &b, &c, &d);
  Cpu cpu;
  cpu.avx2 = fma && (features & AVX2) != 0 && (state & YMM_STATE) == YMM_STATE;
  cpu.avxvnni = cpu.avx2 && (sub_a & AVX_VNNI) != 0;
  cpu.avx512 = cpu.avx2 && (features & wanted) == wanted && (state & ZMM_STATE) == ZMM_STATE;
  cpu.avx512vnni = cpu.avx512 && (more & VNNI) != 0;
  cpu.avx512bf16 = cpu.avx512 && (sub_a & BF16) != 0;
  cpu.amx = cpu.avx512vnni && (most & TILES) == TILES && (state & TILE_STATE) == TILE_STATE && tiles_are_granted();
  return cpu;
}

// An instruction has the same result everywhere, but not the same cost: vdpbf16ps has the rate of a multiply-add on
// AMD's Zen 5 and a quarter of it on Intel's Sapphire Rapids, where int16 pairs are three times as fast. cpuid does not
// say, so it is measured, once; ratios of 1 and 4 are far from the threshold of 2.
bool avx512bf16_is_fast() {
  static const bool is_fast = bf16_pairs_are_fast();
  return is_fast;
}

bool amx_is_fast() {
  static const bool is_fast = tiles_are_fast();
  return is_fast;
}

}  // namespace

Isas isas() {
  static const Cpu cpu = detect();
  static const Isa ISAS[] = {
      {"scalar", true, nullptr, use_scalar},
      {"avx2", cpu.avx2, nullptr, use_avx2},
      {"avxvnni", cpu.avxvnni && use_avxvnni != nullptr, nullptr, use_avxvnni},
      {"avx512", cpu.avx512, nullptr, use_avx512},
      {"avx512vnni", cpu.avx512vnni, nullptr, use_avx512vnni},
      {"avx512bf16", cpu.avx512bf16, avx512bf16_is_fast, use_avx512bf16},
      {"amx", cpu.amx && use_amx != nullptr, amx_is_fast, use_amx},
  };
  return {ISAS, sizeof ISAS / sizeof *ISAS};
}

void pause() { _mm_pause(); }

}  // namespace awq
