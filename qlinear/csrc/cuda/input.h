// The activations of a single row, made ready in shared memory by every block that multiplies them.
#pragma once

#include "layout.h"

namespace awq {

enum InputKind { INPUT_ROW = 0, INPUT_NORM = 1 };

// INPUT_ROW: `row` as it is. INPUT_NORM: the residual stream takes in `delta` (null: nothing), through the norm `after`
// where there is one, and its own norm is the input. The stream is read in one place and written to another, by the
// first block alone: the others may come later.
struct Input {
  const Bf16* row;         // (k)
  const float* residual;   // (k)
  const Bf16* delta;       // (k)
  const float* after;      // (k)
  const float* norm;       // (k)
  float* residual_out;     // (k) or null
  float epsilon;
  int kind;
};

// Over the block, in an order of its own; scratch: a float a warp.
AWQ_DEVICE float block_sum(float value, float* scratch) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();
  if (threadIdx.x % LANES == 0) scratch[threadIdx.x / LANES] = value;
  __syncthreads();
  float sum = 0.0f;
  for (unsigned warp = 0; warp < blockDim.x / LANES; ++warp) sum += scratch[warp];
  return sum;
}

AWQ_DEVICE float inverse_rms(float squares, int n, float epsilon) { return 1.0f / sqrtf(squares / float(n) + epsilon); }

// Two values of the residual stream, with what joins it.
struct Pair {
  float low, high;
};
AWQ_DEVICE Pair joined(const Input& in, int i, float delta_scale) {
  const float2 residual = reinterpret_cast<const float2*>(in.residual)[i];
  Pair sum = {residual.x, residual.y};
  if (in.delta == nullptr) return sum;
  const unsigned delta = reinterpret_cast<const unsigned*>(in.delta)[i];
  if (in.after == nullptr) {
    sum.low += widen(delta);
    sum.high += widen_high(delta);
  } else {
    const float2 after = reinterpret_cast<const float2*>(in.after)[i];
    sum.low += widen(delta) * delta_scale * after.x;
    sum.high += widen_high(delta) * delta_scale * after.y;
  }
  return sum;
}

AWQ_DEVICE void load_norm(const Input& in, int k, unsigned* x, float* scratch) {
  const int pairs = k / 2;
  float delta_scale = 1.0f, squares = 0.0f;
  if (in.delta != nullptr && in.after != nullptr) {
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
      const unsigned delta = reinterpret_cast<const unsigned*>(in.delta)[i];
      squares += widen(delta) * widen(delta) + widen_high(delta) * widen_high(delta);
    }
    delta_scale = inverse_rms(block_sum(squares, scratch), k, in.epsilon);
    squares = 0.0f;
  }
#pragma unroll 4
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
    const Pair value = joined(in, i, delta_scale);
    squares += value.low * value.low + value.high * value.high;
  }
  const float scale = inverse_rms(block_sum(squares, scratch), k, in.epsilon);
#pragma unroll 4
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
    const Pair value = joined(in, i, delta_scale);
    const float2 norm = reinterpret_cast<const float2*>(in.norm)[i];
    x[i] = narrow_pair(value.low * scale * norm.x, value.high * scale * norm.y);
    if (blockIdx.x == 0 && in.residual_out != nullptr)
      reinterpret_cast<float2*>(in.residual_out)[i] = make_float2(value.low, value.high);
  }
}

// x: `padded` bf16 values, zeros from k on; the caller synchronizes.
AWQ_DEVICE void load_input(const Input& in, int k, int padded, uint4* x, float* scratch) {
  unsigned* pairs = reinterpret_cast<unsigned*>(x);
  for (int i = k / 2 + threadIdx.x; i < padded / 2; i += blockDim.x) pairs[i] = 0;
  if (in.kind == INPUT_NORM) {
    load_norm(in, k, pairs, scratch);
    return;
  }
#pragma unroll 4
  for (int i = threadIdx.x; i < k / 8; i += blockDim.x) x[i] = reinterpret_cast<const uint4*>(in.row)[i];
}

}  // namespace awq
