// The activations of a single row, made ready in shared memory by every block that multiplies them.
#pragma once

#include "layout.h"

namespace awq {

enum InputKind { INPUT_ROW = 0, INPUT_NORM = 1 };

// INPUT_ROW: `row` as it is. INPUT_NORM: the residual stream takes in `delta` (null: nothing), through the norm `after`
// where there is one, and its own norm is the input. The stream is read in one place and written to another, by the
// first block alone: the others may come later.
struct Input {
  const Bf16* row;        // (k)
  const float* residual;  // (k)
  const Bf16* delta;      // (k)
  const float* after;     // (k)
  const float* norm;      // (k)
  float* residual_out;    // (k) or null
  float epsilon;
  int kind;
};

AWQ_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Over the block, in an order of its own; scratch: a float a warp, for this sum alone.
AWQ_DEVICE float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  if (threadIdx.x % LANES == 0) scratch[threadIdx.x / LANES] = value;
  __syncthreads();
  float sum = 0.0f;
  for (unsigned warp = 0; warp < blockDim.x / LANES; ++warp) sum += scratch[warp];
  return sum;
}

AWQ_DEVICE float inverse_rms(float squares, int n, float epsilon) { return 1.0f / sqrtf(squares / float(n) + epsilon); }

AWQ_DEVICE float squares_of(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }
AWQ_DEVICE float4 widen_4(uint2 v) { return make_float4(widen(v.x), widen_high(v.x), widen(v.y), widen_high(v.y)); }
AWQ_DEVICE float4 product(float4 a, float4 b, float scale) {
  return make_float4(a.x * scale * b.x, a.y * scale * b.y, a.z * scale * b.z, a.w * scale * b.w);
}
AWQ_DEVICE float4 sum(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// Everything that a thread reads is under way at once: what is constant before the last kernel is done, the rest after.
class RowInput {
 public:
  // Shared memory besides the row: floats, by warp
  static constexpr int SCRATCH = 2;

  AWQ_DEVICE RowInput(const Input& in, int k) : in_(in), k_(k) {
    if (in.kind == INPUT_NORM) for_mine([&](int j, int i) { norm_[j] = reinterpret_cast<const float4*>(in.norm)[i]; });
  }

  // x: `padded` bf16 values, zeros from k on; the caller synchronizes.
  AWQ_DEVICE void load(int padded, uint4* x, float* scratch) const {
    unsigned* pairs = reinterpret_cast<unsigned*>(x);
    for (int i = k_ / 2 + threadIdx.x; i < padded / 2; i += blockDim.x) pairs[i] = 0;
    if (in_.kind == INPUT_NORM) {
      load_norm(reinterpret_cast<uint2*>(x), scratch);
      return;
    }
#pragma unroll 8
    for (int i = threadIdx.x; i < k_ / 8; i += blockDim.x) x[i] = reinterpret_cast<const uint4*>(in_.row)[i];
  }

 private:
  static constexpr int MOST = 8;  // times four values of a thread: 8192 of a block of 256 threads

  template <class Body>
  AWQ_DEVICE void for_mine(const Body& body) const {
#pragma unroll
    for (int j = 0; j < MOST; ++j) {
      const int i = threadIdx.x + j * blockDim.x;
      if (i < k_ / 4) body(j, i);
    }
  }

  AWQ_DEVICE void load_norm(uint2* x, float* scratch) const {
    float4 value[MOST];
    uint2 delta[MOST];
    for_mine([&](int j, int i) {
      value[j] = reinterpret_cast<const float4*>(in_.residual)[i];
      delta[j] = in_.delta != nullptr ? reinterpret_cast<const uint2*>(in_.delta)[i] : make_uint2(0, 0);
    });
    if (in_.after != nullptr) {
      float squares = 0.0f;
      for_mine([&](int j, int) { squares += squares_of(widen_4(delta[j])); });
      const float scale = inverse_rms(block_sum(squares, scratch + blockDim.x / LANES), k_, in_.epsilon);
      for_mine([&](int j, int i) {
        value[j] = sum(value[j], product(widen_4(delta[j]), reinterpret_cast<const float4*>(in_.after)[i], scale));
      });
    } else {
      for_mine([&](int j, int) { value[j] = sum(value[j], widen_4(delta[j])); });
    }
    float squares = 0.0f;
    for_mine([&](int j, int) { squares += squares_of(value[j]); });
    const float scale = inverse_rms(block_sum(squares, scratch), k_, in_.epsilon);
    for_mine([&](int j, int i) {
      const float4 normed = product(value[j], norm_[j], scale);
      x[i] = make_uint2(narrow_pair(normed.x, normed.y), narrow_pair(normed.z, normed.w));
      if (blockIdx.x == 0 && in_.residual_out != nullptr) reinterpret_cast<float4*>(in_.residual_out)[i] = value[j];
    });
  }

  const Input& in_;
  const int k_;
  float4 norm_[MOST];
};

}  // namespace awq
