// Activation rows in and out, and the packing of a tile: plain loops that each instruction set compiles with its own
// flags. Everything is in an anonymous namespace and nothing comes from the standard library's templates: the linker
// must never merge a copy compiled for a newer processor into code that runs on an older one.
#pragma once

#include "layout.h"
#include "table.h"

namespace awq {
namespace {

struct Bf16 { uint16_t bits; };

inline float to_float(Bf16 value) { return bf16_to_float(value.bits); }
inline float to_float(float value) { return value; }

inline void convert(Bf16 from, Bf16& to) { to = from; }
inline void convert(Bf16 from, float& to) { to = to_float(from); }
inline void convert(float from, float& to) { to = from; }
// Round to nearest, ties to even; a NaN stays one.
inline void convert(float from, Bf16& to) {
  uint32_t word;
  memcpy(&word, &from, sizeof word);
  const uint32_t rounded = (word + 0x7fff + (word >> 16 & 1)) >> 16;
  const uint32_t quiet_nan = word >> 16 | 0x40;
  to.bits = uint16_t((word & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
}

// Sixteen values side by side. The compiler makes of them whatever vectors it may use.
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Lanes __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

__attribute__((always_inline)) inline Floats load_floats(const float* from) {
  Floats values;
  memcpy(&values, from, sizeof values);
  return values;
}
__attribute__((always_inline)) inline Floats load_floats(const Bf16* from) {
  Halves halves;
  memcpy(&halves, from, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Lanes) << 16);
}

// Sixteen partial sums, then a tree: an order that does not depend on the instruction set.
template <class In>
float sum(const In* x, int64_t count) {
  Floats total = {};
  for (int64_t i = 0; i < count; i += LANES) total += load_floats(x + i);
  float part[LANES];
  memcpy(part, &total, sizeof part);
  float quarter[4];
  for (int i = 0; i < 4; ++i) quarter[i] = (part[i] + part[i + 4]) + (part[i + 8] + part[i + 12]);
  return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
}

template <class In, class Out>
void convert_pair(const In* from, Out* to) {
  convert(from[0], to[0]);
  convert(from[1], to[1]);
}
// one 32-bit move
inline void convert_pair(const Bf16* from, Bf16* to) { memcpy(to, from, 2 * sizeof *to); }

// Group by group, so that what is written stays in L1 while the rows take their turns.
template <class In, class Out>
void lay_out(const void* x, int64_t stride, int64_t rows, int64_t k, int64_t group_size, void* out, void* sums_out) {
  const In* group = static_cast<const In*>(x);
  Out* pairs = static_cast<Out*>(out);
  float* sums = static_cast<float*>(sums_out);
  for (int64_t g = 0; g < k / group_size; ++g, group += group_size, pairs += group_size * rows, sums += rows) {
    if (rows == 1) {
      for (int64_t i = 0; i < group_size; ++i) convert(group[i], pairs[i]);
      sums[0] = sum(group, group_size);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      // (k) -> (k / 2, rows, 2): pairs of this row, `rows` pairs apart
      const In* row = group + r * stride;
      for (int64_t p = 0; p < group_size / 2; ++p) convert_pair(row + 2 * p, pairs + 2 * (p * rows + r));
      sums[r] = sum(row, group_size);
    }
  }
}

template <class Out>
void store(const float* y, int64_t rows, int64_t columns, void* out, int64_t stride) {
  Out* row = static_cast<Out*>(out);
  for (int64_t r = 0; r < rows; ++r, y += TILE, row += stride) {
    if (columns >= TILE) {
      for (int c = 0; c < TILE; ++c) convert(y[c], row[c]);
    } else {
      for (int64_t c = 0; c < columns; ++c) convert(y[c], row[c]);
    }
  }
}

// Eight 4-bit codes of a lane, c0 lowest, become c0 c2 c4 c6 c1 c3 c5 c7.
__attribute__((always_inline)) inline Lanes part_eight(Lanes codes) {
  Lanes moved = (codes ^ (codes >> 4)) & 0x00f000f0;  // c1 with c2, c5 with c6
  codes ^= moved ^ (moved << 4);
  moved = (codes ^ (codes >> 8)) & 0x0000ff00;  // c1 c3 with c4 c6
  return codes ^ moved ^ (moved << 8);
}

// Of ten 3-bit codes, c0 lowest, c0 c2 c4 c6 c8 side by side.
__attribute__((always_inline)) inline Lanes evens_of_ten(Lanes codes) {
  codes &= 0x071c71c7;                          // c0 . c2 . c4 . c6 . c8 .
  codes = (codes | (codes >> 3)) & 0x0703f03f;  // c0 c2 . . c4 c6 . . c8 .
  codes = (codes | (codes >> 6)) & 0x07000fff;  // c0 c2 c4 c6 . . . . c8 .
  return (codes | (codes >> 12)) & 0x7fff;      // c0 c2 c4 c6 c8
}

// Dense words of sixteen rows, TILE lanes from word to word, to the vectors of a chunk (layout.h). A code is centred by
// flipping its highest bit.
template <int BITS>
__attribute__((always_inline)) inline void pack_chunk(const uint32_t* turned, uint8_t* out) {
  Lanes words[BITS], packed[BITS];
#pragma GCC unroll 4
  for (int w = 0; w < BITS; ++w) memcpy(&words[w], turned + w * TILE, sizeof words[w]);
  if constexpr (BITS == 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) packed[j] = part_eight(words[j]) ^ 0x88888888;
  } else {
    const Lanes tens[3] = {words[0], words[0] >> 30 | words[1] << 2, words[1] >> 28 | words[2] << 4};
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      packed[j] = evens_of_ten(tens[j]) | evens_of_ten(tens[j] >> 3) << 16;
      // columns 30 and 31, in the highest 6 bits: bit j of either
      packed[j] |= (words[2] >> (11 + j) & 0x8000) | (words[2] << (2 - j) & 0x80000000);
      packed[j] ^= j == 2 ? 0xc924c924 : 0x49244924;
    }
  }
  memcpy(out, packed, sizeof packed);
}

// Scales and zeros of one group: 32 zeros are exactly BITS words of the group's column; the last tile may have fewer.
template <int BITS>
void pack_header(const PackJob& job, int64_t tile, int64_t rows, int64_t group, uint8_t* out) {
  const int64_t groups = job.k / job.group_size, zero_rows = (job.n * BITS + 31) / 32;
  const uint16_t* scale = job.scales + tile * TILE * groups + group;
  uint16_t scales[TILE] = {};
  for (int64_t r = 0; r < rows; ++r) scales[r] = scale[r * groups];
  memcpy(out, scales, sizeof scales);

  uint64_t dense[BITS] = {};
  for (int64_t w = 0; w < BITS && tile * BITS + w < zero_rows; ++w)
    dense[w] = job.zeros[(tile * BITS + w) * groups + group];
  // sixteen zeros each, and other bits above them
  const uint64_t low = dense[0] | dense[1] << 32;
  const uint64_t high = BITS == 3 ? dense[1] >> 16 | dense[2] << 16 : dense[2] | dense[BITS - 1] << 32;
  uint8_t zeros[TILE];
  for (int r = 0; r < LANES; ++r) {
    zeros[r] = uint8_t((low >> (r * BITS) & ((1u << BITS) - 1)) - (1u << (BITS - 1)));
    zeros[LANES + r] = uint8_t((high >> (r * BITS) & ((1u << BITS) - 1)) - (1u << (BITS - 1)));
  }
  memcpy(out + SCALE_BYTES, zeros, sizeof zeros);
}

constexpr int SPAN = 96;  // words of a row that are read in one go: whole groups, with either number of bits

// (row, word) -> (word, row) for `rows` rows of up to SPAN words, from word `first` to before `end`.
inline void turn_words(const uint32_t* words, int64_t row_words, int64_t rows, int64_t first, int64_t end,
                       uint32_t (*turned)[TILE]) {
  for (int64_t r = 0; r < rows; ++r, words += row_words)
    for (int64_t w = first; w < end; ++w) turned[w][r] = words[w];
}

// Turn::block does the same for the TILE rows of a whole tile and LANES words, which an instruction set may shuffle.
struct TurnScalar {
  static void block(const uint32_t* words, int64_t row_words, uint32_t (*turned)[TILE]) {
    turn_words(words, row_words, TILE, 0, LANES, turned);
  }
};

template <int BITS, class Turn>
void pack_tile(const PackJob& job, int64_t tile, uint8_t* out) {
  const int64_t groups = job.k / job.group_size, row_words = job.k * BITS / 32;
  const int64_t first = tile * TILE, rows = job.n - first < TILE ? job.n - first : TILE;
  const int64_t chunks = job.group_size / CHUNK, span = SPAN / (chunks * BITS);
  alignas(64) uint32_t turned[SPAN][TILE] = {};  // rows past n stay 0
  const uint32_t* words = job.words + first * row_words;

  for (int64_t begin = 0; begin < groups; begin += span, words += SPAN) {
    const int64_t end = begin + span < groups ? begin + span : groups, count = (end - begin) * chunks * BITS;
    const int64_t blocks = rows == TILE ? count / LANES * LANES : 0;
    for (int64_t w = 0; w < blocks; w += LANES) Turn::block(words + w, row_words, turned + w);
    turn_words(words, row_words, rows, blocks, count, turned);
    const uint32_t* from = turned[0];
    for (int64_t g = begin; g < end; ++g, out += HEADER_BYTES) {
      pack_header<BITS>(job, tile, rows, g, out);
      for (int64_t c = 0; c < chunks; ++c, from += BITS * TILE, out += chunk_bytes(BITS)) {
        pack_chunk<BITS>(from, out + HEADER_BYTES);
        pack_chunk<BITS>(from + LANES, out + HEADER_BYTES + BITS * 64);
      }
    }
  }
}

template <class In, class Laid>
void set_rows(Route& route, int64_t rows) {
  route.rows = rows;
  route.element_bytes = sizeof(Laid);
  route.sum_bytes = sizeof(float);
  route.lay_out = lay_out<In, Laid>;
  route.store = store<In>;
}

}  // namespace
}  // namespace awq
