// One call of the decoder: some tokens through every block, as each thread of the team runs it.
#pragma once

#include "decoder_input.h"

namespace awq {

constexpr int64_t SPLIT = 256;     // positions whose attention is computed apart, and then merged
constexpr int64_t HEAD_ROWS = 48;  // rows that the head reads at a time: whole blocks of every instruction set without tiles

inline int64_t padded_head(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
inline int64_t padded_positions(int64_t tokens) { return (tokens + CACHE_STEP - 1) / CACHE_STEP * CACHE_STEP; }

inline int64_t experts_of(const awq_mixture& mixture) { return mixture.router.logits.part[0].weight.n; }
inline int64_t slots_of(const awq_mixture& mixture) { return mixture.router.top_k + (mixture.shared != nullptr); }

// Bytes of laid-out rows, as many as keep what comes after them aligned.
inline int64_t laid_out_bytes(const awq_projection& projection, int64_t rows) {
  if (is_dense(projection)) return 0;
  return (activation_bytes(route_of(projection), rows, inputs_of(projection), group_of(projection)) + 63) / 64 * 64;
}

// The rows that one expert is given.
struct Visit {
  const awq_mlp* mlp;
  int64_t rows, first;  // of all rows, which lie expert by expert
  int64_t inner;        // values between gate and down of the experts before
  int64_t laid_out_hidden, laid_out_inner;  // bytes of their laid-out inputs
};

// The experts of a block that have rows.
struct Visits {
  Visit* first;  // room for all
  int64_t count;
};

// What mixtures of experts need for `chunk` tokens. A token has a slot for each expert that it chooses, and one for
// the shared one; a slot is a row of the expert's.
struct MixtureBuffers {
  float* scores;     // (chunk, outputs of the router)
  float* compared;   // (chunk, experts)
  int32_t* chosen;   // (chunk, slots): which expert; the shared one comes after all others
  float* weights;    // (chunk, slots)
  int32_t* places;   // (chunk, slots): which row
  int32_t* tokens;   // (rows): whose row it is
  int32_t* next;     // (experts + 1): scratch of the sorting
  Visits* visits;    // (layers): all of them stay, for threads that come late (decoder_team.h)
  uint16_t* x;       // (rows, hidden), then (rows, inner): what gate_up and down read
  uint16_t* out;     // (rows, hidden)
};

// Buffers for `chunk` tokens, allocated once.
struct Buffers {
  explicit Buffers(const awq_model& model);
  ~Buffers();
  Buffers(const Buffers&) = delete;

  float* residual;      // (chunk, hidden)
  uint16_t* x;          // (chunk, widest input): what the next projection reads
  void* laid_out;       // the same in the kernels' layout
  uint16_t* qkv;        // (chunk, (heads + 2 kv_heads) * head_dim)
  uint16_t* delta;      // (chunk, hidden): what a projection adds to the residual
  uint16_t* gate_up;    // (rows of the MLP, 2 * inner)
  float* split_out;     // (kv_heads, splits, heads / kv_heads, width): a single token's attention
  float* split_maxima;  // (kv_heads, splits, heads / kv_heads)
  float* split_sums;    // (kv_heads, splits, heads / kv_heads)
  MixtureBuffers mixture;
  void* memory;
};

// Before a projection; weight (hidden): null where there is none, bias (hidden): null where the norm has none.
struct Norm {
  const float* weight;
  const float* bias;
};

// Where a token stands. clears: what its slot holds after it was not put there by the text that is read.
struct Place {
  int64_t token, position, slot;
  bool clears;
};

// The tokens of all texts, one after the other.
struct Call {
  const awq_reading* readings;
  int64_t texts, count, rows;  // count: tokens of all texts; rows: of logits
  const Place* places;         // (count)
  const int64_t* asked;        // (rows): which tokens they come after
  float* logits;
};

class Step {
 public:
  Step(const awq_model& model, const Buffers& buffers, const Call& call, Member member)
      : model_(model), buffers_(buffers), call_(call), member_(member), ops_(ops()) {}

  void run();

  // Phases that run() goes through at most.
  static int64_t phases(const awq_model& model);

 private:
  void embed();
  Input add_norm(const uint16_t* delta, const float* after, Norm norm, const awq_projection& next);
  void read_residual(const float* residual, Norm norm, uint16_t* out) const;
  Input read_again(const awq_projection& next);
  void add(const float* after);
  void norm_heads(const awq_block& block);
  void write_kv(const awq_block& block);
  Input attend(const awq_block& block);
  void attend_rows(const awq_block& block, int64_t first_token, int64_t count, int64_t kv_head);
  void attend_text(const awq_block& block, int64_t text, int64_t unit, int64_t most);
  void attend_alone(const awq_block& block, const Input& input);
  void attend_splits(const awq_block& block, int64_t begin, int64_t end, int64_t splits);
  awq_attention_job job_of(const awq_block& block, int64_t token, int64_t tokens, int64_t kv_head, const uint16_t* q);
  void merge_splits(int64_t head, int64_t splits, uint16_t* out);
  void store_key(const uint16_t* key, int64_t position, uint8_t* keys) const;
  void store_value(const uint16_t* value, int64_t position, uint8_t* values) const;
  void clear_values(int64_t position, uint8_t* values) const;
  void load_queries(const awq_block& block, int64_t kv_head, int64_t token, int64_t tokens, uint16_t* q);
  void run_attention(const awq_block& block);
  void run_mlp(const awq_block& block);
  void run_parallel(const awq_block& block);
  Input gate(const awq_mlp& mlp);
  void run_mixture(const awq_block& block);
  void choose_experts(const awq_mixture& mixture);
  void sort_by_expert(const awq_mixture& mixture, Visits& visits);
  template <class Fill>
  void fill_rows(const Visits& visits, awq_projection awq_mlp::*next, Fill&& fill);
  template <class Out>
  void multiply_rows(const Visits& visits, awq_projection awq_mlp::*projection, Out&& out);
  Input input_of(const Visit& visit, awq_projection awq_mlp::*next) const;
  void write_logits(const uint16_t* delta, const float* after);
  void rope(const awq_block& block, const float* norm, int64_t token, const uint16_t* in, uint16_t* out);
  uint8_t* cache_of(uint8_t* cache, int64_t slot, int64_t kv_head) const {
    const int64_t tiles = padded_positions(model_.max_tokens) / CACHE_TILE;
    return cache + (slot * model_.kv_heads + kv_head) * tiles * tile_bytes();
  }

  int64_t group() const { return model_.heads / model_.kv_heads; }
  int64_t width() const { return padded_head(model_.head_dim); }
  int64_t tile_bytes() const { return cache_tile_bytes(width(), model_.kv_bits); }
  int64_t qkv_width() const { return (model_.heads + 2 * model_.kv_heads) * model_.head_dim; }

  const awq_model& model_;
  const Buffers& buffers_;
  const Call& call_;
  Member member_;
  const Ops& ops_;
};

}  // namespace awq
