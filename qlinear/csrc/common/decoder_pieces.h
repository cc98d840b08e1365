// What every instruction set brings to the decoder besides the matmul of packed weights.
#pragma once

#include <stdint.h>

#include "decoder.h"

namespace awq {

constexpr int64_t MAX_HEAD = 256;        // features of a head
constexpr int64_t ATTENTION_ROWS = 64;   // query rows of an attention job at most
constexpr int64_t CACHE_TILE = 16;       // positions of a tile of keys
constexpr int64_t CACHE_STEP = 128;      // positions scored at a time
constexpr int64_t DENSE_UNIT = 32;       // outputs of a unit of work in a dense matmul

// One query head's attention, computed in pieces: the pieces are `step` rows apart in each array.
struct MergeJob {
  const float* out;     // (pieces, step, width)
  const float* maxima;  // (pieces, step)
  const float* sums;    // (pieces, step)
  int64_t pieces, step, width, head_dim;
};

struct Pieces {
  // x (n) to bf16(x / rms(x) * weight)
  void (*norm)(const float* x, const float* weight, float epsilon, int64_t n, uint16_t* out);
  // residual (n) += delta (n), or, where weight is not null, += delta / rms(delta) * weight
  void (*add)(const uint16_t* delta, const float* weight, float epsilon, int64_t n, float* residual);
  void (*embed)(const uint16_t* row, float scale, int64_t n, float* residual);
  void (*head)(const awq_head_job& job, const uint16_t* in, uint16_t* out);
  void (*gate)(const uint16_t* gate, const uint16_t* up, int64_t n, int32_t activation, uint16_t* out);
  void (*attend)(const awq_attention_job& job);
  void (*merge)(const MergeJob& job, uint16_t* out);
  void (*scale)(const float* x, float factor, int64_t n, uint16_t* out);
  // Outputs [begin, end) of x (rows, k) @ dense.T + bias; y rows are `stride` apart.
  void (*dense)(const awq_matrix& matrix, const uint16_t* x, int64_t rows, int64_t begin, int64_t end, uint16_t* y,
                int64_t stride);
  void (*dense_logits)(const awq_matrix& matrix, const uint16_t* x, int64_t rows, int64_t begin, int64_t end,
                       float* y, int64_t stride);
  // x (n) becomes cap * tanh(x / cap)
  void (*cap)(float limit, int64_t n, float* x);
  // log(sum(exp(x)))
  float (*log_sum_exp)(const float* x, int64_t n);
};

extern const Pieces scalar_pieces, avx2_pieces, avx512_pieces, avx512bf16_pieces;

// Those of the instruction set in use.
const Pieces& pieces();

}  // namespace awq
