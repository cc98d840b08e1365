// A whole decoder stack as one call: tokens in, logits out, with keys and values kept in a static cache,
// which has slots for as many texts at once.
//
// What a model's blocks are made of is described by data; memory is the caller's and has to outlive the decoder.
// Activations between operations are bf16, as in the model's own modules; the residual stream, norms, rotations,
// softmax, every sum and the logits are fp32. Results have the same bits at any number of threads; what comes after a
// token has the same bits however its text is cut into calls, and whatever other texts are read beside it.
#pragma once

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// One weight: packed; or, where `dense` is not null, bf16 (n, k), row-major; or, where `bytes` is not null, what
// awq_to_bytes makes of that. n, k and bias are those of `weight`.
typedef struct awq_matrix {
  awq_weight weight;
  const uint16_t* dense;
  const int8_t* bytes;
  const uint16_t* byte_scales;
} awq_matrix;

// Up to three weights that read the same input; their outputs lie side by side. All dense, or all packed with one
// group size, and all or none of them with int8.
typedef struct awq_projection {
  awq_matrix part[3];
  int64_t parts;
} awq_projection;

// A gated MLP: activation(gate) * up, and down. gate_up gives all of the gate, then all of up. Or a plain one:
// activation(up), and down; gate_up gives up only.
typedef struct awq_mlp {
  awq_projection gate_up, down;
  int32_t plain;
  const float* curve;  // (4): the alphas of xIELU above and below 0, its beta and epsilon; else null
} awq_mlp;

enum awq_scoring { AWQ_SOFTMAX = 0, AWQ_SIGMOID = 1 };

// How a token chooses `top_k` experts by a score for each, and what theirs count for.
typedef struct awq_router {
  awq_projection logits;       // dense, what scores are made of: one part (experts, hidden), or two whose sum is meant
  const float* correction;     // (experts): added to a score where experts are compared, not where they are weighed; or null
  int64_t top_k;
  int64_t groups, top_groups;  // only experts of the best groups are compared; a group is worth its two best
  float scaling;               // what every chosen score is multiplied by
  float least_sum;
  int32_t scoring;             // awq_scoring
  int32_t normalized;          // 1: the scores of the chosen are first divided by their sum, or by `least_sum`
} awq_router;

typedef struct awq_mixture {
  awq_router router;
  const awq_mlp* experts;  // one for each output of the router
  const awq_mlp* shared;   // what every token goes through besides, or null
  awq_matrix shared_gate;  // (1, hidden), dense: the sigmoid of its output is what the shared one counts for; else 1
} awq_mixture;

// Norms are RMS norms, or layer norms; their fp32 weights are what the normalised value is multiplied by, their biases are
// added to that. Null: the block has none; what reads the residual then reads it as it is.
typedef struct awq_block {
  const float* input_norm;      // (hidden): before qkv
  const float* attention_norm;  // (hidden): of the attention's output, before it joins the residual
  const float* mlp_norm;        // (hidden): before gate_up
  const float* output_norm;     // (hidden): of the MLP's output, before it joins the residual
  const float* q_norm;          // (head_dim): of every query head
  const float* k_norm;          // (head_dim): of every key head
  const float* all_q_norm;      // (heads * head_dim): of all of a token's query heads together
  const float* all_k_norm;      // (kv_heads * head_dim): of all of its key heads
  const float* input_bias;      // (hidden): of the layer norm before qkv
  const float* mlp_bias;        // (hidden): of the one before gate_up
  awq_projection qkv, o;
  awq_mlp mlp;
  const awq_mixture* mixture;  // instead of the MLP, or null
  const float* cosines;  // (max_tokens, rotary_dim / 2): the angle of features i and i + rotary_dim / 2
  const float* sines;
  uint8_t* keys;    // (slots, awq_cache_bytes()) each, zero before the first call
  uint8_t* values;
  int64_t window;  // positions that a query sees, itself included; 0: all
} awq_block;

// The last two are of plain MLPs only.
enum awq_activation { AWQ_SILU = 0, AWQ_GELU_TANH = 1, AWQ_RELU_SQUARED = 2, AWQ_XIELU = 3 };

typedef struct awq_model {
  const awq_block* blocks;
  const uint16_t* embedding;  // (vocabulary, hidden) bf16
  const float* final_norm;    // (hidden)
  const float* final_bias;    // (hidden) or null
  awq_projection head;        // (vocabulary, hidden)
  int64_t layers, vocabulary, hidden, heads, kv_heads, head_dim, rotary_dim;
  int64_t max_tokens;  // positions of a slot in the cache
  int64_t slots;
  int64_t chunk;       // tokens that a call reads at most
  float epsilon;
  float embedding_scale;
  float attention_scale;
  float attention_cap;  // scores become cap * tanh(score / cap); 0: they stay
  float logit_cap;
  int32_t activation;  // awq_activation
  int32_t interleaved;  // 1: the cosines and sines are those of features 2 i and 2 i + 1
  int32_t layer_norm;   // 1: the norms before projections subtract the mean first; there are no others then
  int32_t parallel;     // 1: gate_up reads what qkv reads; attention and MLP join the residual together
  int32_t turned_first;  // 1: q_norm and k_norm are of heads that the rotation has turned; not with `interleaved`
  int32_t kv_bits;       // 16: keys and values are bf16; 8: int8, with a scale for each head and position
} awq_model;

// Limits: head_dim even and at most 256, heads a multiple of kv_heads and at most 64 times as many; at most 64 groups of
// experts, and top_k experts to choose from in the best of them.
typedef struct awq_decoder awq_decoder;

// Copies the model and its blocks, not what they point to, and allocates every buffer that awq_decoder_read needs; null
// where there is no memory for them.
AWQ_EXPORT awq_decoder* awq_decoder_create(const awq_model* model);
AWQ_EXPORT void awq_decoder_free(awq_decoder* decoder);

// Bytes of one block's keys (and as many of its values) for `max_tokens` positions.
AWQ_EXPORT int64_t awq_cache_bytes(int64_t max_tokens, int64_t kv_heads, int64_t head_dim, int32_t kv_bits);

// Have slot `target` hold the first `count` positions of slot `source`, as if they had been read there.
AWQ_EXPORT void awq_decoder_copy(awq_decoder* decoder, int64_t source, int64_t target, int64_t count);

// Tokens (count) of one text, which stand at `position` and on; what its slot of the cache holds before `position` is
// their past. The last `rows` of them are given to the head. 1 <= count, 0 <= rows <= count.
typedef struct awq_reading {
  const int64_t* tokens;
  int64_t slot, position, count, rows;
} awq_reading;

// Read of each of `texts` texts some tokens, `chunk` in all at most; no two texts are in one slot. logits (the sum of
// their rows, vocabulary), text by text; where there are no rows it may be null.
AWQ_EXPORT void awq_decoder_read(awq_decoder* decoder, const awq_reading* readings, int64_t texts, float* logits);

// Single operations of the decoder, as the instruction set in use computes them: for tests.

// Rotary position embedding of one head of a query or key: bf16 in, optional RMS norm, rotation, bf16 out, or the norm
// after the rotation (not of interleaved ones: its weights are in the order of the features that come out). Interleaved
// features come out as others do, first all even ones, then all odd ones: of queries as of keys, so that it matters to
// none of their products.
typedef struct awq_rope_job {
  const float* norm;     // (head_dim) or null
  const float* cosines;  // (rotary_dim / 2): those of the head's position
  const float* sines;
  float epsilon;
  int64_t head_dim, rotary_dim;
  int32_t interleaved, turned_first;
} awq_rope_job;

// Softmax attention of some query rows (64 at most) over positions [begin, end) of one key/value head. Row r stands
// at position first + r / group and sees the `window` positions up to its own (0: all). The head's cache is bf16,
// with `width` = head_dim padded to a multiple of 16 with zeros, and room for a multiple of 128 positions:
//   keys    tile by tile (width / 2, 16 positions, 2 features): a lane a position, pairs of features
//   values  (positions / 2, width, 2 positions): a lane a feature, pairs of positions
// Or it is int8, tile by tile: 16 positions of integers and their scales, fp32 (16).
//   keys    (width / 4, 16 positions, 4 features), 128 higher than they are: 1 to 255
//   values  (4, width, 4 positions)
typedef struct awq_attention_job {
  const uint16_t* q;  // (rows, width) bf16
  const void* keys;
  const void* values;
  int64_t rows, group, first, window, begin, end, width;
  float scale, cap;
  float* maxima;  // (rows) out: the largest score,
  float* sums;    // (rows) out: the sum of exp(score - largest),
  float* out;     // (rows, width) out: the sum of exp(score - largest) * value
  int32_t kv_bits;  // 8: the cache is int8
} awq_attention_job;

// The experts of one token. scores (outputs of the router): logits in, scores of the experts out; compared (experts):
// scratch; chosen, weights (top_k).
typedef struct awq_route_job {
  const awq_router* router;
  float* scores;
  float* compared;
  int32_t* chosen;
  float* weights;
} awq_route_job;

// The sum of `count` bf16 rows of n values, row places[i] of `rows` times weights[i].
typedef struct awq_mix_job {
  const uint16_t* rows;
  const int32_t* places;
  const float* weights;
  int64_t count, n;
} awq_mix_job;

AWQ_EXPORT void awq_rms_norm(const float* x, const float* weight, float epsilon, int64_t n, uint16_t* out);
AWQ_EXPORT void awq_layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int64_t n,
                               uint16_t* out);
AWQ_EXPORT void awq_rope(const awq_rope_job* job, const uint16_t* in, uint16_t* out);
AWQ_EXPORT void awq_attend(const awq_attention_job* job);
AWQ_EXPORT void awq_gate(const uint16_t* gate, const uint16_t* up, int64_t n, int32_t activation, uint16_t* out);
AWQ_EXPORT void awq_activate(const uint16_t* x, int64_t n, int32_t activation, const float* curve, uint16_t* out);
AWQ_EXPORT void awq_route(const awq_route_job* job);
AWQ_EXPORT void awq_mix(const awq_mix_job* job, uint16_t* out);
AWQ_EXPORT void awq_dense(const awq_matrix* matrix, const uint16_t* x, int64_t rows, uint16_t* y);

#ifdef __cplusplus
}
#endif
