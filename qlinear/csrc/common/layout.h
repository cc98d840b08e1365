// How a packed weight lies in memory.
//
// Rows are cut into tiles of 32, and each tile is one linear stream: for every group along k one record
//
//   [32 scales, bf16] [32 zeros, int8] [codes: group_size / 32 chunks]
//
// so a core that works on a tile reads ascending addresses only, and a weight costs bits + 24 / group_size bits.
// Codes and zeros are stored less 2^(bits-1), in two's complement: values centred on 0 lose less in
// `acc - zero * sum`, and any field can be sign-extended or looked up in a table without a mask.
//
// A chunk is 32 rows x 32 columns: for each half of 16 rows, `bits` vectors of sixteen 32-bit lanes, a lane a row.
// The low 16 bits of a lane hold codes of even columns, the high 16 bits those of odd columns at the same places, so
// that one lane yields pairs (2p, 2p+1), which is what a bf16 pair product wants:
//   4 bits: vector j holds pair 4j+f at bits 4f, f = 0..3.
//   3 bits: vector j holds pair 5j+f at bits 3f, f = 0..4; the bit left over (15) is bit j of pair 15.
#pragma once

#include <stdint.h>
#include <string.h>

namespace awq {
namespace {

constexpr int TILE = 32;          // rows of a tile
constexpr int CHUNK = 32;         // columns of a chunk
constexpr int PAIRS = CHUNK / 2;  // column pairs of a chunk
constexpr int HALF_TILE = 16;     // rows of a vector of codes
constexpr int MAX_GROUP = 256;
constexpr int SCALE_BYTES = 2 * TILE;
constexpr int HEADER_BYTES = SCALE_BYTES + TILE;

constexpr int64_t chunk_bytes(int bits) { return TILE * CHUNK * bits / 8; }
constexpr int64_t record_bytes(int bits, int64_t group_size) {
  return HEADER_BYTES + group_size / CHUNK * chunk_bytes(bits);
}
inline int64_t tiles_of(int64_t n) { return (n + TILE - 1) / TILE; }
inline int64_t tile_bytes(int bits, int64_t k, int64_t group_size) {
  return k / group_size * record_bytes(bits, group_size);
}

// The centred code of one row (0..31) and column (0..31) of a chunk.
inline int code_at(const uint8_t* chunk, int bits, int row, int column) {
  const uint8_t* lanes = chunk + row / HALF_TILE * bits * 64 + row % HALF_TILE * 4;
  auto half_lane = [&](int vector) {
    uint32_t lane;
    memcpy(&lane, lanes + vector * 64, sizeof lane);
    return lane >> (column % 2 * 16) & 0xffff;
  };
  const int pair = column / 2, fields = 16 / bits;
  uint32_t code = 0;
  if (pair < fields * bits) {
    code = half_lane(pair / fields) >> (pair % fields * bits) & ((1u << bits) - 1);
  } else {
    for (int j = 0; j < bits; ++j) code |= (half_lane(j) >> 15) << j;
  }
  const int sign = 1 << (bits - 1);
  return (int(code) ^ sign) - sign;
}

}  // namespace
}  // namespace awq
