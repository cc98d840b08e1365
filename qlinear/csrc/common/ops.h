// The table of operations. Scalar code fills in every entry; each further instruction set overrides those that it has
// something better for, and keeps the others as they are.
#pragma once

#include <stdint.h>

#include "decoder.h"

namespace awq {

// --- awq_linear

constexpr int MAX_ROWS = 32;  // activation rows that a block kernel handles at most

// One tile times a block of activation rows: y (rows, 32) += x @ tile.T.
// records: the tile's records (layout.h); x, sums: the block as laid out by the same route; y: fp32.
using BlockKernel = void (*)(const uint8_t* records, int64_t groups, int64_t group_size, const void* x,
                             const void* sums, float* y);

// Activation rows as they come: (rows, k), `stride` elements from row to row.
struct InputRows {
  const void* x;
  int64_t stride, rows, k, group_size;
};

// Lay rows out for a block kernel, as (k / 2, rows, 2) or, of int8, (k / 4, rows, 4), or, for tiles, (groups, rows,
// group_size), and add up each group: sums (groups, rows).
using LayOut = void (*)(const InputRows& in, void* out, void* sums);

// Round y (rows, 32) to the output type; columns beyond `columns` are padding.
using StoreRows = void (*)(const float* y, int64_t rows, int64_t columns, void* out, int64_t stride);

// How activations of one type are multiplied.
struct Route {
  BlockKernel block[2][MAX_ROWS + 1];  // by bits - 3, and by rows from 1 to `rows`
  int64_t rows;                        // rows of the largest block
  int64_t in_bytes, out_bytes;         // of an activation as it comes, and of a result
  int64_t element_bytes;               // of a laid-out activation
  int64_t sum_bytes;                   // of what is kept besides, for each row and group
  LayOut lay_out;
  StoreRows store_rows;
};

// --- awq_pack

struct PackJob {
  const uint32_t* words;   // (n, k * bits / 32)
  const uint32_t* zeros;   // (ceil(n * bits / 32), k / group_size)
  const uint16_t* scales;  // (n, k / group_size)
  int64_t n, k, group_size;
};
using PackTile = void (*)(const PackJob& job, int64_t tile, uint8_t* out);

// --- the decoder

constexpr int64_t MAX_HEAD = 256;       // features of a head
constexpr int64_t ATTENTION_ROWS = 64;  // query rows of an attention job at most
constexpr int64_t CACHE_TILE = 16;      // positions of a tile of keys
constexpr int64_t CACHE_STEP = 128;     // positions scored at a time
constexpr int64_t KEY_TILES = 2;        // tiles of keys scored side by side
constexpr int64_t CACHE_READ = KEY_TILES * CACHE_TILE;  // positions of which all are read where one is
// Bytes of a tile of keys, or of as many values: bf16, or int8 and a scale for each position.
constexpr int64_t cache_tile_bytes(int64_t width, int32_t kv_bits) {
  return CACHE_TILE * (kv_bits == 8 ? width + int64_t(sizeof(float)) : 2 * width);
}
constexpr int64_t DENSE_UNIT = 32;      // outputs of a unit of work in a dense matmul
constexpr int64_t BYTE_GROUP = 64;      // weights of one byte that share a scale
constexpr float NO_SCORE = -1e30f;      // the largest of no scores
constexpr int64_t MAX_EXPERT_GROUPS = 64;

inline int64_t byte_groups(int64_t k) { return (k + BYTE_GROUP - 1) / BYTE_GROUP; }

// A query head's attention over one more split of positions, and that over those before it.
struct MergeJob {
  const float* out;    // (width), maximum, sum: of the split, as in awq_attention_job
  float maximum, sum;
  int64_t width;
  float* merged;       // (width), top, total: the same of all splits before, and then of this one too
  float* top;
  float* total;
};

// Outputs [begin, end) of x (rows, k) @ matrix.T + bias.
struct DenseJob {
  const awq_matrix& matrix;
  const uint16_t* x;
  int64_t rows, begin, end;
};

struct Ops {
  Route linear_bf16, linear_f32, linear_int8;
  PackTile pack_tile_3, pack_tile_4;  // by bits
  // x (n) to bf16(x / rms(x) * weight)
  void (*norm)(const float* x, const float* weight, float epsilon, int64_t n, uint16_t* out);
  // x (n) to bf16((x - mean(x)) / deviation(x) * weight + bias), or, where that is null, without bias
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon, int64_t n, uint16_t* out);
  // x (n) becomes x / rms(x) * weight
  void (*norm_heads)(const float* weight, float epsilon, int64_t n, uint16_t* x);
  // residual (n) += delta (n), or, where weight is not null, += delta / rms(delta) * weight
  void (*add)(const uint16_t* delta, const float* weight, float epsilon, int64_t n, float* residual);
  // residual (n) = row (n) * scale
  void (*embed)(const uint16_t* row, float scale, int64_t n, float* residual);
  void (*rope)(const awq_rope_job& job, const uint16_t* in, uint16_t* out);
  // out (n) = activation(gate) * up
  void (*gate)(const uint16_t* gate, const uint16_t* up, int64_t n, int32_t activation, uint16_t* out);
  // out (n) = activation(x); curve: as in awq_mlp
  void (*activate)(const uint16_t* x, int64_t n, int32_t activation, const float* curve, uint16_t* out);
  void (*attend)(const awq_attention_job& job);
  void (*attend_int8)(const awq_attention_job& job);
  // both brought to the larger maximum, and added up
  void (*merge)(const MergeJob& job);
  // out (n) = x (n) * factor
  void (*scale)(const float* x, float factor, int64_t n, uint16_t* out);
  // y: rows `stride` elements apart
  void (*dense)(const DenseJob& job, uint16_t* y, int64_t stride);
  void (*dense_logits)(const DenseJob& job, float* y, int64_t stride);
  void (*route)(const awq_route_job& job);
  void (*mix)(const awq_mix_job& job, uint16_t* out);
  // a row of k weights in bytes, and the scales of its groups
  void (*to_bytes)(const uint16_t* row, int64_t k, int8_t* codes, uint16_t* scales);
  // x (n) becomes limit * tanh(x / limit)
  void (*cap)(float limit, int64_t n, float* x);

  const Route& linear(const awq_weight& weight, awq_dtype dtype) const {
    return dtype == AWQ_F32 ? linear_f32 : weight.int8 ? linear_int8 : linear_bf16;
  }
  void attend_to(const awq_attention_job& job) const { job.kv_bits == 8 ? attend_int8(job) : attend(job); }
  PackTile pack_tile(int bits) const { return bits == 3 ? pack_tile_3 : pack_tile_4; }
};

// The table in use.
const Ops& ops();

// Fills in every entry.
void use_scalar(Ops& ops);

}  // namespace awq
