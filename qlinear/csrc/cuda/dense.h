// What of a token's way through a model is not packed: its embedding, and weights that stay bf16.
#pragma once

#include "input.h"
#include "output.h"

namespace awq {

// (n, k) bf16, row-major, k a multiple of 8
template <int ROWS>
struct DenseJob {
  const Bf16* weight[ROWS];
  const float* bias[ROWS];  // (n) or null
  int n, k;
  Input input;
  Output output;
};

AWQ_DEVICE float dot_8(uint4 a, uint4 b, float sum) {
  const unsigned left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum += widen(left[i]) * widen(right[i]);
    sum += widen_high(left[i]) * widen_high(right[i]);
  }
  return sum;
}

// A warp a row (of each of two weights: gate and up). Shared memory: the input | its scratch
template <int ROWS>
AWQ_DEVICE void dense_row(const DenseJob<ROWS>& job) {
  AWQ_SHARED(memory);
  const int lane = threadIdx.x % LANES, warps = blockDim.x / LANES, chunks = job.k / 8;
  const RowInput input(job.input, job.k);
  wait_for_last();
  input.load(job.k, memory, reinterpret_cast<float*>(memory + chunks));
  __syncthreads();
  let_next_start();
  for (int n = blockIdx.x * warps + threadIdx.x / LANES; n < job.n; n += gridDim.x * warps) {
    float sums[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const uint4* row = reinterpret_cast<const uint4*>(job.weight[i] + (long long)n * job.k);
      float sum = 0.0f;
#pragma unroll 8
      for (int c = lane; c < chunks; c += LANES) sum = dot_8(row[c], memory[c], sum);
      sums[i] = warp_sum(sum) + (job.bias[i] != nullptr ? job.bias[i][n] : 0.0f);
    }
    if (lane == 0) store_output<ROWS>(job.output, n, sums);
  }
}

// residual (hidden) = embedding[state[0]] * scale
struct EmbedJob {
  const Bf16* embedding;
  const long long* state;  // token, position
  float* residual;
  float scale;
  int hidden;
};

AWQ_DEVICE void embed(const EmbedJob& job) {
  wait_for_last();
  let_next_start();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < job.hidden) job.residual[i] = widen(job.embedding[job.state[0] * job.hidden + i]) * job.scale;
}

}  // namespace awq
