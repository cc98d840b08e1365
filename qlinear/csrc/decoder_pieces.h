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

// Cache of one key/value head, bf16, `width` = head_dim padded to a multiple of 16 with zeros:
//   keys    tile by tile (width / 2, 16 positions, 2 features): a lane a position, pairs of features
//   values  (positions / 2, width, 2 positions): a lane a feature, pairs of positions

// One head of a query or key: bf16 in, optional RMS norm, rotation, bf16 out.
struct HeadJob {
  const float* norm;     // (head_dim) or null
  const float* cosines;  // (rotary_dim / 2), those of the position
  const float* sines;
  float epsilon;
  int64_t head_dim, rotary_dim;
};

// Softmax attention of some query rows over one key/value head's positions [begin, end).
// Row r stands at position first + r / group and sees the `window` positions up to its own (0: all).
struct AttentionJob {
  const uint16_t* q;  // (rows, width) bf16
  const uint16_t* keys;
  const uint16_t* values;
  int64_t rows, group, first, window, begin, end, width;
  float scale, cap;
  float* maxima;  // (rows) out: the largest score,
  float* sums;    // (rows) out: the sum of exp(score - largest),
  float* out;     // (rows, width) out: the sum of exp(score - largest) * value
};

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
  void (*head)(const HeadJob& job, const uint16_t* in, uint16_t* out);
  void (*gate)(const uint16_t* gate, const uint16_t* up, int64_t n, int32_t activation, uint16_t* out);
  void (*attend)(const AttentionJob& job);
  void (*merge)(const MergeJob& job, uint16_t* out);
  void (*scale)(const float* x, float factor, int64_t n, uint16_t* out);
  // Outputs [begin, end) of x (rows, k) @ dense.T + bias; y rows are `stride` apart.
  void (*dense)(const awq_matrix& matrix, const uint16_t* x, int64_t rows, int64_t begin, int64_t end, uint16_t* y,
                int64_t stride);
  // Logits to fp32, capped where cap is not 0.
  void (*logits)(const uint16_t* in, float cap, int64_t n, float* out);
  // log(sum(exp(x)))
  float (*log_sum_exp)(const float* x, int64_t n);
};

extern const Pieces scalar_pieces, avx2_pieces, avx512_pieces, avx512bf16_pieces;

// Those of the instruction set in use.
const Pieces& pieces();

}  // namespace awq
