// The reference: no intrinsics, any x86-64. The other instruction sets are tested against what this computes.
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
      for (int r = 0; r < ROWS; ++r) y[r * TILE + n] += bf16_to_float(scale) * (acc[r][n] - zero * sums[r]);
    }
  }
}

template <int BITS>
void set_blocks(Route& route) {
  BlockKernel* block_of = route.block[BITS - 3];
  block_of[1] = block<BITS, 1>;
  block_of[2] = block<BITS, 2>;
  block_of[3] = block<BITS, 3>;
  block_of[4] = block<BITS, 4>;
}

}  // namespace

void fill_scalar(Table& table) {
  table.name = "scalar";
  for (Route& route : table.route) {
    set_blocks<3>(route);
    set_blocks<4>(route);
  }
  set_rows<Bf16, float>(table.route[0], 4);
  set_rows<float, float>(table.route[1], 4);
  table.pack_tile[0] = pack_tile<3, TurnScalar>;
  table.pack_tile[1] = pack_tile<4, TurnScalar>;
}

}  // namespace awq
