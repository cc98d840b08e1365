// The reference: no intrinsics, any processor. The other instruction sets are tested against what this computes.
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

template <int BITS>
void set_blocks(BlockKernel* block_of) {
  block_of[1] = block<BITS, 1>;
  block_of[2] = block<BITS, 2>;
  block_of[3] = block<BITS, 3>;
  block_of[4] = block<BITS, 4>;
}

template <class In>
void use_linear(Route& route) {
  set_blocks<3>(route.block[0]);
  set_blocks<4>(route.block[1]);
  set_rows<In, float>(route, 4);
}

}  // namespace

void use_scalar(Ops& ops) {
  use_linear<Bf16>(ops.linear_bf16);
  use_linear<float>(ops.linear_f32);
  use_pack_tile<TransposeScalar>(ops);
  use_row_ops(ops);
  use_pair_ops<PairsByHalves<2>>(ops);
}

}  // namespace awq
