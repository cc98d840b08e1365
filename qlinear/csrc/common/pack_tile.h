// A tile of a checkpoint's words to the kernels' layout. What cannot be shuffled is plain loops, which each instruction
// set compiles with its own flags.
#pragma once

#include "lanes.h"
#include "layout.h"
#include "ops.h"

namespace awq {
namespace {

// Eight 4-bit codes of a lane, c0 lowest, become c0 c2 c4 c6 c1 c3 c5 c7.
AWQ_INLINE Words part_eight(Words codes) {
  Words moved = (codes ^ (codes >> 4)) & 0x00f000f0;  // c1 with c2, c5 with c6
  codes ^= moved ^ (moved << 4);
  moved = (codes ^ (codes >> 8)) & 0x0000ff00;  // c1 c3 with c4 c6
  return codes ^ moved ^ (moved << 8);
}

// Of ten 3-bit codes, c0 lowest, c0 c2 c4 c6 c8 side by side.
AWQ_INLINE Words evens_of_ten(Words codes) {
  codes &= 0x071c71c7;                          // c0 . c2 . c4 . c6 . c8 .
  codes = (codes | (codes >> 3)) & 0x0703f03f;  // c0 c2 . . c4 c6 . . c8 .
  codes = (codes | (codes >> 6)) & 0x07000fff;  // c0 c2 c4 c6 . . . . c8 .
  return (codes | (codes >> 12)) & 0x7fff;      // c0 c2 c4 c6 c8
}

// Dense words of sixteen rows, TILE lanes from word to word, to the vectors of a chunk (layout.h). A code is centred by
// flipping its highest bit.
template <int BITS>
AWQ_INLINE void pack_chunk(const uint32_t* columns, uint8_t* out) {
  Words words[BITS], packed[BITS];
#pragma GCC unroll 4
  for (int w = 0; w < BITS; ++w) memcpy(&words[w], columns + w * TILE, sizeof words[w]);
  if constexpr (BITS == 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) packed[j] = part_eight(words[j]) ^ 0x88888888;
  } else {
    const Words tens[3] = {words[0], words[0] >> 30 | words[1] << 2, words[1] >> 28 | words[2] << 4};
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
  for (int r = 0; r < HALF_TILE; ++r) {
    zeros[r] = uint8_t((low >> (r * BITS) & ((1u << BITS) - 1)) - (1u << (BITS - 1)));
    zeros[HALF_TILE + r] = uint8_t((high >> (r * BITS) & ((1u << BITS) - 1)) - (1u << (BITS - 1)));
  }
  memcpy(out + SCALE_BYTES, zeros, sizeof zeros);
}

static_assert(HALF_TILE == LANES, "a lane a row");

constexpr int SPAN = 96;  // words of a row that are read in one go: whole groups, with either number of bits

constexpr int BLOCK = 16;  // words of a row that Transpose::block takes

// (row, word) -> (word, row) for `rows` rows of up to SPAN words, from word `first` to before `end`.
inline void transpose(const uint32_t* words, int64_t row_words, int64_t rows, int64_t first, int64_t end,
                      uint32_t (*columns)[TILE]) {
  for (int64_t r = 0; r < rows; ++r, words += row_words)
    for (int64_t w = first; w < end; ++w) columns[w][r] = words[w];
}

// Transpose::block does the same for the TILE rows of a whole tile and BLOCK words: an instruction set may shuffle.
struct TransposeScalar {
  static void block(const uint32_t* words, int64_t row_words, uint32_t (*columns)[TILE]) {
    transpose(words, row_words, TILE, 0, BLOCK, columns);
  }
};

template <int BITS, class Transpose>
void pack_tile(const PackJob& job, int64_t tile, uint8_t* out) {
  const int64_t groups = job.k / job.group_size, row_words = job.k * BITS / 32;
  const int64_t first = tile * TILE, rows = job.n - first < TILE ? job.n - first : TILE;
  const int64_t chunks = job.group_size / CHUNK, span = SPAN / (chunks * BITS);
  alignas(64) uint32_t columns[SPAN][TILE] = {};  // rows past n stay 0
  const uint32_t* words = job.words + first * row_words;

  for (int64_t begin = 0; begin < groups; begin += span, words += SPAN) {
    const int64_t end = begin + span < groups ? begin + span : groups, count = (end - begin) * chunks * BITS;
    const int64_t blocks = rows == TILE ? count / BLOCK * BLOCK : 0;
    for (int64_t w = 0; w < blocks; w += BLOCK) Transpose::block(words + w, row_words, columns + w);
    transpose(words, row_words, rows, blocks, count, columns);
    const uint32_t* from = columns[0];
    for (int64_t g = begin; g < end; ++g, out += HEADER_BYTES) {
      pack_header<BITS>(job, tile, rows, g, out);
      for (int64_t c = 0; c < chunks; ++c, from += BITS * TILE, out += chunk_bytes(BITS)) {
        pack_chunk<BITS>(from, out + HEADER_BYTES);
        pack_chunk<BITS>(from + HALF_TILE, out + HEADER_BYTES + BITS * 64);
      }
    }
  }
}

template <class Transpose>
void use_pack_tile(Ops& ops) {
  ops.pack_tile_3 = pack_tile<3, Transpose>;
  ops.pack_tile_4 = pack_tile<4, Transpose>;
}

}  // namespace
}  // namespace awq
