// What the sources of AMX use of AVX-512 and of AMX itself, in plain vectors, for processors that have neither. Included
// before them. Tiles after Intel's manual (volume 2, LDTILECFG to TILEZERO): shapes are checked, as a processor does.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define asm(...)  // what keeps the compiler from moving a register

namespace emulated {

typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

template <class To>
To load(const void* from) {
  To value;
  memcpy(&value, from, sizeof value);
  return value;
}
template <class Value>
void store(void* to, Value value) {
  memcpy(to, &value, sizeof value);
}

inline __m512i ternary(__m512i a, __m512i b, __m512i c, int table) {
  __m512i out = {};
  for (int row = 0; row < 8; ++row)
    if (table >> row & 1) out |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return out;
}

// Sums of `sizeof(int32_t) / sizeof(A)` products a lane.
template <class A, class B>
__m512i dot(__m512i sums, __m512i a, __m512i b) {
  A of_a[64 / sizeof(A)];
  B of_b[64 / sizeof(B)];
  int32_t out[16];
  store(of_a, a);
  store(of_b, b);
  store(out, sums);
  constexpr int PARTS = 4 / sizeof(A);
  for (int i = 0; i < 16 * PARTS; ++i) out[i / PARTS] += int32_t(of_a[i]) * int32_t(of_b[i]);
  return load<__m512i>(out);
}

inline __m512i permute_words(__m512i index, __m512i values) {
  uint16_t at[32], from[32], out[32];
  store(at, index);
  store(from, values);
  for (int i = 0; i < 32; ++i) out[i] = from[at[i] & 31];
  return load<__m512i>(out);
}

inline __m512i blend_words(uint32_t mask, __m512i a, __m512i b) {
  uint16_t first[32], second[32];
  store(first, a);
  store(second, b);
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) first[i] = second[i];
  return load<__m512i>(first);
}

template <class From>
__m512i widen(const void* from) {
  int32_t out[16];
  From in[16];
  memcpy(in, from, sizeof in);
  for (int i = 0; i < 16; ++i) out[i] = in[i];
  return load<__m512i>(out);
}

inline __m512 fma(__m512 a, __m512 b, __m512 c) {
  __m512 out;
  for (int i = 0; i < 16; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
}

// --- tiles

[[noreturn]] inline void fault(const char* what) {
  fprintf(stderr, "a processor with AMX would raise a fault: %s\n", what);
  abort();
}

struct Tiles {
  bool configured = false;
  int rows[8] = {}, bytes[8] = {};
  uint8_t data[8][16][64] = {};
};
inline Tiles& tiles() {
  static thread_local Tiles of_thread;
  return of_thread;
}

inline void configure(const void* from) {
  const uint8_t* bytes = static_cast<const uint8_t*>(from);
  if (bytes[0] != 1 || bytes[1] != 0) fault("a palette that there is not");
  Tiles& t = tiles();
  t = {};
  t.configured = true;
  for (int i = 0; i < 16; ++i) {
    uint16_t width;
    memcpy(&width, bytes + 16 + 2 * i, sizeof width);
    const int height = bytes[48 + i];
    if (height > 16 || width > 64 || width % 4 != 0 || (height == 0) != (width == 0)) fault("a shape that no tile has");
    if (i >= 8 && height > 0) fault("more tiles than there are");
    if (i < 8) {
      t.rows[i] = height;
      t.bytes[i] = width;
    }
  }
}
inline void release() { tiles() = {}; }
inline Tiles& used(int tile) {
  Tiles& t = tiles();
  if (!t.configured || t.rows[tile] == 0) fault("a tile without a shape");
  return t;
}
inline void zero(int tile) { memset(used(tile).data[tile], 0, sizeof tiles().data[tile]); }
inline void load_tile(int tile, const void* from, int64_t stride) {
  zero(tile);
  Tiles& t = tiles();
  for (int r = 0; r < t.rows[tile]; ++r)
    memcpy(t.data[tile][r], static_cast<const uint8_t*>(from) + r * stride, size_t(t.bytes[tile]));
}
inline void store_tile(int tile, void* to, int64_t stride) {
  Tiles& t = used(tile);
  for (int r = 0; r < t.rows[tile]; ++r)
    memcpy(static_cast<uint8_t*>(to) + r * stride, t.data[tile][r], size_t(t.bytes[tile]));
}

// add(row, column of 4 bytes, a's row, b's rows)
template <class Add>
void multiply(int sums, int a, int b, Add add) {
  Tiles& t = used(sums);
  used(a);
  used(b);
  if (t.rows[sums] != t.rows[a] || t.bytes[sums] != t.bytes[b] || t.bytes[a] != 4 * t.rows[b]) fault("shapes that do not fit");
  for (int r = 0; r < t.rows[sums]; ++r)
    for (int c = 0; c < t.bytes[sums] / 4; ++c) add(t.data[sums][r] + 4 * c, t.data[a][r], t.data[b], c, t.rows[b]);
}
inline float bf16(const uint8_t* from) {
  uint16_t half;
  memcpy(&half, from, sizeof half);
  if ((half & 0x7f80) == 0) half &= 0x8000;  // denormals are zeros
  const uint32_t word = uint32_t(half) << 16;
  return load<float>(&word);
}
inline void multiply_bf16(int sums, int a, int b) {
  multiply(sums, a, b, [](uint8_t* sum, const uint8_t* row, uint8_t (*columns)[64], int c, int steps) {
    float even = 0, odd = 0;
    for (int k = 0; k < steps; ++k) {
      even = __builtin_fmaf(bf16(row + 4 * k), bf16(columns[k] + 4 * c), even);
      odd = __builtin_fmaf(bf16(row + 4 * k + 2), bf16(columns[k] + 4 * c + 2), odd);
    }
    store(sum, load<float>(sum) + (even + odd));
  });
}
inline void multiply_int8(int sums, int a, int b) {  // signed by unsigned
  multiply(sums, a, b, [](uint8_t* sum, const uint8_t* row, uint8_t (*columns)[64], int c, int steps) {
    int32_t total = load<int32_t>(sum);
    for (int k = 0; k < steps; ++k)
      for (int i = 0; i < 4; ++i) total += int32_t(int8_t(row[4 * k + i])) * int32_t(columns[k][4 * c + i]);
    store(sum, total);
  });
}

}  // namespace emulated

#define AWQ_INTS(value) ((emulated::Ints)(value))
#define AWQ_WORDS(value) ((emulated::Words)(value))
#define _mm512_load_si512(from) emulated::load<__m512i>(from)
#define _mm512_loadu_si512(from) emulated::load<__m512i>(from)
#define _mm512_load_ps(from) emulated::load<__m512>(from)
#define _mm512_loadu_ps(from) emulated::load<__m512>(from)
#define _mm512_store_si512(to, value) emulated::store(to, value)
#define _mm512_storeu_ps(to, value) emulated::store(to, value)
#define _mm512_set1_epi32(value) ((__m512i)(emulated::Ints{} + int32_t(value)))
#define _mm512_set1_ps(value) ((__m512)(emulated::Floats{} + float(value)))
#define _mm512_castsi512_ps(value) ((__m512)(value))
#define _mm512_add_epi32(a, b) ((__m512i)(AWQ_WORDS(a) + AWQ_WORDS(b)))
#define _mm512_sub_epi32(a, b) ((__m512i)(AWQ_WORDS(a) - AWQ_WORDS(b)))
#define _mm512_add_ps(a, b) ((a) + (b))
#define _mm512_mul_ps(a, b) ((a) * (b))
#define _mm512_fmadd_ps(a, b, c) emulated::fma(a, b, c)
#define _mm512_fnmadd_ps(a, b, c) emulated::fma(-(a), b, c)
#define _mm512_slli_epi32(value, by) ((__m512i)(AWQ_WORDS(value) << (by)))
#define _mm512_srli_epi32(value, by) ((__m512i)(AWQ_WORDS(value) >> (by)))
#define _mm512_srai_epi32(value, by) ((__m512i)(AWQ_INTS(value) >> (by)))
#define _mm512_cvtepi32_ps(value) ((__m512)__builtin_convertvector(AWQ_INTS(value), emulated::Floats))
#define _mm512_cvtepi8_epi32(value) emulated::widen<int8_t>(&(const __m128i&)(value))
#define _mm512_cvtepu16_epi32(value) emulated::widen<uint16_t>(&(const __m256i&)(value))
#define _mm512_ternarylogic_epi32(a, b, c, table) emulated::ternary(a, b, c, table)
#define _mm512_permutexvar_epi16(index, values) emulated::permute_words(index, values)
#define _mm512_mask_blend_epi16(mask, a, b) emulated::blend_words(mask, a, b)
#define _mm512_madd_epi16(a, b) (emulated::dot<int16_t, int16_t>(__m512i{}, a, b))
#define _mm512_dpwssd_epi32(sums, a, b) (emulated::dot<int16_t, int16_t>(sums, a, b))
#define _mm512_dpbusd_epi32(sums, a, b) (emulated::dot<uint8_t, int8_t>(sums, a, b))

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_loadconfig(from) emulated::configure(from)
#define _tile_release() emulated::release()
#define _tile_zero(tile) emulated::zero(tile)
#define _tile_loadd(tile, from, stride) emulated::load_tile(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::store_tile(tile, to, stride)
#define _tile_dpbf16ps(sums, a, b) emulated::multiply_bf16(sums, a, b)
#define _tile_dpbsud(sums, a, b) emulated::multiply_int8(sums, a, b)
#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
