// Packed weights times 1 to 16 rows of activations.
#pragma once

#include "input.h"
#include "output.h"
#include "stream.h"

namespace awq {

template <int TILES>
struct RowJob {
  Weight weight[TILES];
  Input input;
  Output output;
};

// Of two tiles: the second weight is the second half of the rows.
template <int TILES>
struct RowsJob {
  Weight weight[TILES];
  const Bf16* x;  // (rows, stride)
  Bf16* y;        // (rows, n of both)
  int rows, stride;
};

// Shared memory: the row, padded to whole stages | rings | sums of warps, twice
template <int BITS, bool FINE, int TILES>
AWQ_DEVICE void linear_row(const RowJob<TILES>& job) {
  typedef Stream<BITS, FINE, TILES> Ring;
  AWQ_SHARED(memory);
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, lane = threadIdx.x % LANES, k = job.weight[0].k;
  const int padded = divide_up(k, STAGE) * STAGE;
  unsigned char* rings = reinterpret_cast<unsigned char*>(memory + padded / 8);
  float* partial = reinterpret_cast<float*>(rings + warps * Ring::RING);

  Ring stream(job.weight, rings + warp * Ring::RING);
  stream.fill();
  const RowInput input(job.input, k);
  wait_for_last();
  let_next_start();  // it fills its rings as blocks of this one end
  input.load(padded, memory, partial);
  __syncthreads();

  for (int tile = blockIdx.x; tile < stream.tiles(); tile += gridDim.x) {
    Multiplier<BITS, FINE, 1> sums[TILES];
#pragma unroll
    for (int i = 0; i < TILES; ++i) sums[i].clear();
    stream.multiply(sums, [&](int column, Activations(&x)[1]) {
      x[0].half[0] = memory[column / 8 + lane % 4];
      x[0].half[1] = memory[column / 8 + 4 + lane % 4];
    });
    // all columns of a sum are the same: the row stood in every one of them
    if (lane % 4 == 0)
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        partial[(warp * TILES + i) * TILE + lane / 4] = sums[i].total[0][0];
        partial[(warp * TILES + i) * TILE + lane / 4 + 8] = sums[i].total[0][2];
      }
    __syncthreads();
    const int n = tile * TILE + threadIdx.x;
    if (threadIdx.x < TILE && n < job.weight[0].n) {
      float total[TILES];
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        total[i] = job.weight[i].bias != nullptr ? job.weight[i].bias[n] : 0.0f;
        for (int w = 0; w < warps; ++w) total[i] += partial[(w * TILES + i) * TILE + threadIdx.x];
      }
      store_output<TILES>(job.output, n, total);
    }
    // the sums of the next tile go beside these; nobody is two tiles ahead of the barrier
    partial += (partial == reinterpret_cast<float*>(rings + warps * Ring::RING) ? 1 : -1) * warps * TILES * TILE;
  }
}

template <int TILES>
AWQ_DEVICE void store_sum(const RowsJob<TILES>& job, int x_row, int side, int n, float total) {
  const Weight& weight = job.weight[side];
  if (x_row >= job.rows || n >= weight.n) return;
  const int first = job.weight[0].n, whole = TILES == 2 ? first + job.weight[TILES - 1].n : first;
  if (weight.bias != nullptr) total += weight.bias[n];
  job.y[(long long)x_row * whole + side * first + n] = Bf16(narrow(total));
}

// Shared memory: rings | sums of warps, twice. Activations come through L1; two tiles share what has been loaded.
template <int BITS, bool FINE, int COLUMNS, int TILES>
AWQ_DEVICE void linear_rows(const RowsJob<TILES>& job) {
  typedef Stream<BITS, FINE, TILES> Ring;
  constexpr int ROWS = 8 * COLUMNS, SUMS = ROWS * TILES * TILE;
  AWQ_SHARED(memory);
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, lane = threadIdx.x % LANES;
  const int k = job.weight[0].k, t = lane % 4, g = lane / 4;
  unsigned char* rings = reinterpret_cast<unsigned char*>(memory);
  float* const sums_of_warps = reinterpret_cast<float*>(rings + warps * Ring::RING);

  const Bf16* row[COLUMNS];  // beyond the last row: the last one again, for sums that nobody asks for
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    const int at = 8 * c + g < job.rows ? 8 * c + g : job.rows - 1;
    row[c] = job.x + (long long)at * job.stride + 8 * t;
  }
  Ring stream(job.weight, rings + warp * Ring::RING);
  stream.fill();
  wait_for_last();
  let_next_start();

  int side = 0;
  for (int tile = blockIdx.x; tile < stream.tiles(); tile += gridDim.x, side = 1 - side) {
    Multiplier<BITS, FINE, COLUMNS> sums[TILES];
#pragma unroll
    for (int i = 0; i < TILES; ++i) sums[i].clear();
    stream.multiply(sums, [&](int column, Activations(&x)[COLUMNS]) {
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        x[c].half[0] = *reinterpret_cast<const uint4*>(row[c] + column);
        x[c].half[1] = make_uint4(0, 0, 0, 0);
        if (!FINE || column + 32 < k) x[c].half[1] = *reinterpret_cast<const uint4*>(row[c] + column + 32);
      }
    });
    float* partial = sums_of_warps + side * warps * SUMS;  // (warps, rows, tiles, 16)
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          const int x_row = 8 * c + 2 * t + s % 2, tile_row = g + s / 2 * 8;
          partial[warp * SUMS + (x_row * TILES + i) * TILE + tile_row] = sums[i].total[c][s];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < SUMS; i += blockDim.x) {
      float total = 0.0f;
      for (int w = 0; w < warps; ++w) total += partial[w * SUMS + i];
      store_sum<TILES>(job, i / (TILES * TILE), i / TILE % TILES, tile * TILE + i % TILE, total);
    }
  }
}

}  // namespace awq
