// The reference: no intrinsics, any processor. The other instruction sets are tested against what this computes.
#include "attention_fours.h"
#include "int8.h"
#include "pack_tile.h"
#include "pair_ops.h"
#include "row_ops.h"
#include "rows.h"

namespace awq {
namespace {

template <int BITS, int ROWS>
void block(const uint8_t* record, int64_t groups, int64_t group_size, const void* x, const void* sums_in, float* y) {
  const float* sums = static_cast<const float*>(sums_in);
  const float* pair = static_cast<const float*>(x);
  for (int64_t g = 0; g < groups; ++g, record += record_bytes(BITS, group_size), sums += ROWS) {
    float acc[ROWS][TILE] = {};
    for (int64_t column = 0; column < group_size; ++column) {
      const uint8_t* chunk = record + HEADER_BYTES + column / CHUNK * chunk_bytes(BITS);
      for (int n = 0; n < TILE; ++n) {
        const float code = float(code_at(chunk, BITS, n, int(column % CHUNK)));
        for (int r = 0; r < ROWS; ++r) acc[r][n] += pair[2 * r + column % 2] * code;
      }
      if (column % 2 == 1) pair += 2 * ROWS;
    }
    for (int n = 0; n < TILE; ++n) {
      uint16_t scale;
      memcpy(&scale, record + 2 * n, sizeof scale);
      const float zero = float(int8_t(record[SCALE_BYTES + n]));
      for (int r = 0; r < ROWS; ++r) y[r * TILE + n] += widen(scale) * (acc[r][n] - zero * sums[r]);
    }
  }
}

// The same of activations as int8, as int8.h has it.
template <int BITS, int ROWS>
void block_int8(const uint8_t* record, int64_t groups, int64_t group_size, const void* x, const void* sums_in, float* y) {
  constexpr int HALF = 1 << (BITS - 1);
  const Int8Sum* sums = static_cast<const Int8Sum*>(sums_in);
  const int8_t* quad = static_cast<const int8_t*>(x);
  for (int64_t g = 0; g < groups; ++g, record += record_bytes(BITS, group_size), sums += ROWS) {
    int32_t acc[ROWS][TILE] = {};
    for (int64_t first = 0; first < group_size; first += 4, quad += 4 * ROWS) {
      const uint8_t* chunk = record + HEADER_BYTES + first / CHUNK * chunk_bytes(BITS);
      for (int i = 0; i < 4; ++i) {
        const int column = int(first / 8 % (CHUNK / 8)) * 8 + column_of_quad(int(first / 4 % 2), i);
        for (int n = 0; n < TILE; ++n) {
          const int code = code_at(chunk, BITS, n, column) + HALF;
          for (int r = 0; r < ROWS; ++r) acc[r][n] += code * quad[4 * r + i];
        }
      }
    }
    for (int n = 0; n < TILE; ++n) {
      uint16_t scale;
      memcpy(&scale, record + 2 * n, sizeof scale);
      const int zero = int8_t(record[SCALE_BYTES + n]) + HALF;
      for (int r = 0; r < ROWS; ++r) {
        float& to = y[r * TILE + n];
        to = __builtin_fmaf(widen(scale), float(acc[r][n] - zero * sums[r].sum) * sums[r].scale, to);
      }
    }
  }
}

template <template <int, int> class Block, int BITS>
void set_blocks(BlockKernel* block_of) {
  block_of[1] = Block<BITS, 1>::run;
  block_of[2] = Block<BITS, 2>::run;
  block_of[3] = Block<BITS, 3>::run;
  block_of[4] = Block<BITS, 4>::run;
}

template <int BITS, int ROWS> struct Exact { static constexpr BlockKernel run = block<BITS, ROWS>; };
template <int BITS, int ROWS> struct Int8 { static constexpr BlockKernel run = block_int8<BITS, ROWS>; };

constexpr int64_t MOST_ROWS = 4;

template <template <int, int> class Block>
void set_blocks(Route& route) {
  set_blocks<Block, 3>(route.block[0]);
  set_blocks<Block, 4>(route.block[1]);
}

}  // namespace

void use_scalar(Ops& ops) {
  set_blocks<Exact>(ops.linear_bf16);
  set_rows<Bf16, float>(ops.linear_bf16, MOST_ROWS);
  set_blocks<Exact>(ops.linear_f32);
  set_rows<float, float>(ops.linear_f32, MOST_ROWS);
  set_blocks<Int8>(ops.linear_int8);
  set_int8_rows<4>(ops.linear_int8, MOST_ROWS);
  use_pack_tile<TransposeScalar>(ops);
  use_row_ops<4>(ops);
  use_pair_ops<PairsByHalves<2, 2, 4>>(ops);
  ops.attend_int8 = attend<CacheOfBytes<FoursAtOnce<QuadsOneByOne>>>;
}

}  // namespace awq
