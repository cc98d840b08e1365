// The dispatch table: what every instruction set has to offer, and how the ladder fills it in.
#pragma once

#include <stdint.h>

namespace awq {

constexpr int MAX_ROWS = 12;  // activation rows that a block kernel handles at most

// One tile times a block of activation rows: y (rows, 32) += x @ tile.T.
// records: the tile's records; x: the block as laid out by the same route, with its sums; y: fp32.
using BlockKernel = void (*)(const uint8_t* records, int64_t groups, int64_t group_size, const void* x,
                             const void* sums, float* y);

// Lay out `rows` activation rows for a block kernel, as (k / 2, rows, 2), and add up each group: sums (groups, rows).
using LayOut = void (*)(const void* x, int64_t stride, int64_t rows, int64_t k, int64_t group_size, void* out,
                        void* sums);

// Round y (rows, 32) to the output type; columns beyond `columns` are padding.
using Store = void (*)(const float* y, int64_t rows, int64_t columns, void* out, int64_t stride);

// How activations of one type are multiplied.
struct Route {
  BlockKernel block[2][MAX_ROWS + 1];  // by bits - 3, and by rows from 1 to `rows`
  int64_t rows;                        // rows of the largest block
  int64_t element_bytes;               // of a laid-out activation,
  int64_t sum_bytes;                   // of what is kept of a row's group besides
  LayOut lay_out;
  Store store;
};

struct PackJob {
  const uint32_t* words;   // (n, k * bits / 32)
  const uint32_t* zeros;   // (ceil(n * bits / 32), k / group_size)
  const uint16_t* scales;  // (n, k / group_size)
  int64_t n, k, group_size;
};
using PackTile = void (*)(const PackJob& job, int64_t tile, uint8_t* out);

struct Table {
  const char* name;
  Route route[2];         // by awq_dtype
  PackTile pack_tile[2];  // by bits - 3
};

void fill_scalar(Table& table);
void fill_avx2(Table& table);
extern void (*const fill_avxvnni)(Table& table);  // null where the compiler is too old for it
void fill_avx512(Table& table);
void fill_avx512vnni(Table& table);
void fill_avx512bf16(Table& table);

// Whether vdpbf16ps runs at more than half the rate of a fused multiply-add; takes about 50 microseconds to find out.
bool bf16_pairs_are_fast();

// The table in use.
const Table& table();

}  // namespace awq
