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

// Column `column` of sixteen rows, centred, from the dense words of a chunk; the bits above the code are 0.
template <int BITS>
__attribute__((always_inline)) inline Lanes dense_code(const Lanes* words, int column) {
  const int word = column * BITS / 32, shift = column * BITS % 32;
  Lanes code = words[word] >> shift;
  if (shift + BITS > 32) code |= words[word + 1] << (32 - shift);
  return (code & ((1u << BITS) - 1)) ^ (1u << (BITS - 1));
}

// Dense words of sixteen rows, TILE lanes from word to word, to the vectors of a chunk (layout.h).
template <int BITS>
__attribute__((always_inline)) inline void pack_chunk(const uint32_t* turned, uint8_t* out) {
  constexpr int FIELDS = 16 / BITS;
  Lanes words[BITS], packed[BITS] = {};
#pragma GCC unroll 4
  for (int w = 0; w < BITS; ++w) memcpy(&words[w], turned + w * TILE, sizeof words[w]);
#pragma GCC unroll 32
  for (int column = 0; column < CHUNK; ++column) {
    const int pair = column / 2, odd = column % 2 * 16;
    const Lanes code = dense_code<BITS>(words, column);
    if (pair < FIELDS * BITS) {
      packed[pair / FIELDS] |= code << (pair % FIELDS * BITS + odd);
    } else {
#pragma GCC unroll 4
      for (int j = 0; j < BITS; ++j) packed[j] |= (code >> j & 1) << (15 + odd);
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

  uint32_t dense[BITS + 1] = {};
  for (int64_t w = 0; w < BITS && tile * BITS + w < zero_rows; ++w)
    dense[w] = job.zeros[(tile * BITS + w) * groups + group];
#pragma GCC unroll 32
  for (int r = 0; r < TILE; ++r) {
    const int word = r * BITS / 32, shift = r * BITS % 32;
    uint32_t zero = dense[word] >> shift;
    if (shift + BITS > 32) zero |= dense[word + 1] << (32 - shift);
    out[SCALE_BYTES + r] = uint8_t((zero & ((1u << BITS) - 1)) - (1u << (BITS - 1)));
  }
}

template <int BITS>
void pack_tile(const PackJob& job, int64_t tile, uint8_t* out) {
  const int64_t groups = job.k / job.group_size, row_words = job.k * BITS / 32;
  const int64_t first = tile * TILE, rows = job.n - first < TILE ? job.n - first : TILE;
  const int64_t chunks = job.group_size / CHUNK;
  alignas(64) uint32_t turned[MAX_GROUP * BITS / 32][TILE] = {};  // rows past n stay 0
  const uint32_t* words = job.words + first * row_words;

  for (int64_t g = 0; g < groups; ++g, words += chunks * BITS, out += record_bytes(BITS, job.group_size)) {
    pack_header<BITS>(job, tile, rows, g, out);
    // (row, word) -> (word, row): a group of a row is read at once, while its cache line is there
    for (int64_t r = 0; r < rows; ++r) {
      const uint32_t* row = words + r * row_words;
      for (int64_t c = 0; c < chunks; ++c, row += BITS)
#pragma GCC unroll 4
        for (int w = 0; w < BITS; ++w) turned[c * BITS + w][r] = row[w];
    }
    uint8_t* chunk = out + HEADER_BYTES;
    for (int64_t c = 0; c < chunks; ++c, chunk += chunk_bytes(BITS)) {
      pack_chunk<BITS>(turned[c * BITS], chunk);
      pack_chunk<BITS>(turned[c * BITS] + LANES, chunk + BITS * 64);
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
