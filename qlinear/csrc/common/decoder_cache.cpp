// The attention of a step: keys and values into the cache, and queries over it.
#include "decoder_step.h"
#include "int8.h"

namespace awq {
namespace {

constexpr int64_t PAIR = 2, QUAD = 4;     // what a lane holds of a cache of bf16, and of one of int8
constexpr int64_t MERGED_BY_ONE = 64;     // splits, of all heads, below which others would come too late to help

// Features (n) of one position, to a lane of PER of them in each of n / PER vectors, or to one PER-th of n lanes.
template <int64_t PER, class T>
void store_key_features(const T* key, int64_t n, T* to) {
  for (int64_t d = 0; d < n; d += PER) memcpy(to + d * CACHE_TILE, key + d, PER * sizeof *key);
}

template <int64_t PER, class T>
void store_value_features(const T* value, int64_t n, T* to) {
  for (int64_t d = 0; d < n; ++d) to[PER * d] = value[d];
}

}  // namespace

// key (width): the features of one head, zeros after the last
void Step::store_key(const uint16_t* key, int64_t position, uint8_t* keys) const {
  uint8_t* tile = keys + position / CACHE_TILE * tile_bytes();
  const int64_t at = position % CACHE_TILE;
  if (model_.kv_bits != 8) {  // (width / 2, 16 positions, 2)
    store_key_features<PAIR>(key, width(), reinterpret_cast<uint16_t*>(tile) + at * PAIR);
    return;
  }
  int8_t integers[MAX_HEAD];
  const float scale = to_integers<Four>(key, width(), integers).scale;
  uint8_t raised[MAX_HEAD];
  for (int64_t d = 0; d < width(); ++d) raised[d] = uint8_t(integers[d] + 128);
  store_key_features<QUAD>(raised, width(), tile + at * QUAD);  // (width / 4, 16 positions, 4)
  memcpy(tile + CACHE_TILE * width() + at * sizeof scale, &scale, sizeof scale);
}

void Step::store_value(const uint16_t* value, int64_t position, uint8_t* values) const {
  uint8_t* tile = values + position / CACHE_TILE * tile_bytes();
  const int64_t at = position % CACHE_TILE;
  if (model_.kv_bits != 8) {  // (8, width, 2 positions)
    store_value_features<PAIR>(value, width(), reinterpret_cast<uint16_t*>(tile) + at / PAIR * PAIR * width() + at % PAIR);
    return;
  }
  int8_t integers[MAX_HEAD];
  const float scale = to_integers<Four>(value, width(), integers).scale;
  // (4, width, 4 positions)
  store_value_features<QUAD>(integers, width(), reinterpret_cast<int8_t*>(tile) + at / QUAD * QUAD * width() + at % QUAD);
  memcpy(tile + CACHE_TILE * width() + at * sizeof scale, &scale, sizeof scale);
}

// What attention reads along with the values before `position`: their weights are 0, which a NaN would not mind.
void Step::clear_values(int64_t position, uint8_t* values) const {
  for (; position % CACHE_READ != 0; ++position) {
    uint8_t* tile = values + position / CACHE_TILE * tile_bytes();
    const int64_t at = position % CACHE_TILE;
    if (model_.kv_bits == 8) {
      memset(tile + CACHE_TILE * width() + at * sizeof(float), 0, sizeof(float));
      continue;
    }
    uint16_t* pairs = reinterpret_cast<uint16_t*>(tile) + at / PAIR * PAIR * width();
    for (int64_t d = 0; d < width(); ++d) pairs[PAIR * d + at % PAIR] = 0;
  }
}

void Step::rope(const awq_block& block, const float* norm, int64_t token, const uint16_t* in, uint16_t* out) {
  const int64_t angle = call_.places[token].position * (model_.rotary_dim / 2);
  ops_.rope({norm, block.cosines + angle, block.sines + angle, model_.epsilon, model_.head_dim, model_.rotary_dim,
             model_.interleaved, model_.turned_first},
            in, out);
}

// The norms over all of a token's heads together.
void Step::norm_heads(const awq_block& block) {
  if (block.all_q_norm == nullptr) return;
  const int64_t q_width = model_.heads * model_.head_dim, k_width = model_.kv_heads * model_.head_dim;
  member_.share(call_.count, member_.even(call_.count), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      uint16_t* q = buffers_.qkv + token * qkv_width();
      ops_.norm_heads(block.all_q_norm, model_.epsilon, q_width, q);
      ops_.norm_heads(block.all_k_norm, model_.epsilon, k_width, q + q_width);
    }
  });
}

void Step::write_kv(const awq_block& block) {
  member_.share(call_.count, CACHE_TILE, [&](int64_t begin, int64_t end) {
    uint16_t key[MAX_HEAD] = {}, value[MAX_HEAD] = {};
    const int64_t head_dim = model_.head_dim;
    for (int64_t token = begin; token < end; ++token) {
      const Place& at = call_.places[token];
      const uint16_t* k = buffers_.qkv + token * qkv_width() + model_.heads * head_dim;
      const uint16_t* v = k + model_.kv_heads * head_dim;
      for (int64_t h = 0; h < model_.kv_heads; ++h) {
        rope(block, block.k_norm, token, k + h * head_dim, key);
        memcpy(value, v + h * head_dim, size_t(head_dim) * sizeof *value);
        store_key(key, at.position, cache_of(block.keys, at.slot, h));
        store_value(value, at.position, cache_of(block.values, at.slot, h));
        if (at.clears) clear_values(at.position + 1, cache_of(block.values, at.slot, h));
      }
    }
  });
}

// The query heads that share a key/value head, rotated: q (tokens * group, width).
void Step::load_queries(const awq_block& block, int64_t kv_head, int64_t token, int64_t tokens, uint16_t* q) {
  memset(q, 0, size_t(tokens * group() * width()) * sizeof *q);
  for (int64_t t = token; t < token + tokens; ++t)
    for (int64_t g = 0; g < group(); ++g, q += width())
      rope(block, block.q_norm, t, buffers_.qkv + t * qkv_width() + (kv_head * group() + g) * model_.head_dim, q);
}

// A unit is one key/value head and some tokens of one text; where a single token is all there is, some positions of its
// past.
Input Step::attend(const awq_block& block) {
  const Input input(block.o, buffers_.x, buffers_.laid_out, call_.count);
  if (call_.count == 1) {
    attend_alone(block, input);
    return input;
  }
  const int64_t most = ATTENTION_ROWS / group();  // tokens of a unit
  const auto units = [&](int64_t text) { return model_.kv_heads * ((call_.readings[text].count + most - 1) / most); };
  member_.share(units_of_parts(call_.texts, units), 1, [&](int64_t begin, int64_t end) {
    for_parts(call_.texts, units, begin, end,
              [&](int64_t text, int64_t unit, int64_t) { attend_text(block, text, unit, most); });
  });
  member_.share(input.blocks(), 1, [&](int64_t unit, int64_t) { input.ready(unit); });
  return input;
}

void Step::attend_text(const awq_block& block, int64_t text, int64_t unit, int64_t most) {
  int64_t before = unit / model_.kv_heads * most;
  const int64_t left = call_.readings[text].count - before;
  for (int64_t i = 0; i < text; ++i) before += call_.readings[i].count;
  attend_rows(block, before, left < most ? left : most, unit % model_.kv_heads);
}

void Step::attend_alone(const awq_block& block, const Input& input) {
  const int64_t splits = call_.places[0].position / SPLIT + 1, units = model_.kv_heads * splits;
  member_.share(units, member_.even(units),
                [&](int64_t begin, int64_t end) { attend_splits(block, begin, end, splits); });
  const bool by_one = model_.heads * splits <= MERGED_BY_ONE;
  member_.share(model_.heads, by_one ? model_.heads : member_.even(model_.heads), [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) merge_splits(head, splits, input.row(0) + head * model_.head_dim);
    if (by_one) input.ready(0);
  });
  if (!by_one) member_.share(1, 1, [&](int64_t, int64_t) { input.ready(0); });
}

// What queries (tokens * group, width) from `token` on ask of a key/value head.
awq_attention_job Step::job_of(const awq_block& block, int64_t token, int64_t tokens, int64_t kv_head,
                               const uint16_t* q) {
  const Place& at = call_.places[token];
  awq_attention_job job{};
  job.q = q;
  job.keys = cache_of(block.keys, at.slot, kv_head);
  job.values = cache_of(block.values, at.slot, kv_head);
  job.rows = tokens * group();
  job.group = group();
  job.first = at.position;
  job.window = block.window;
  job.width = width();
  job.scale = model_.attention_scale;
  job.cap = model_.attention_cap;
  job.kv_bits = model_.kv_bits;
  return job;
}

// Split by split, as a single token is, since each weighs what it sees by its own largest score.
void Step::attend_rows(const awq_block& block, int64_t token, int64_t count, int64_t kv_head) {
  alignas(64) uint16_t q[ATTENTION_ROWS * MAX_HEAD];
  alignas(64) float out[ATTENTION_ROWS * MAX_HEAD], merged[ATTENTION_ROWS * MAX_HEAD];
  float maxima[ATTENTION_ROWS], sums[ATTENTION_ROWS], tops[ATTENTION_ROWS], totals[ATTENTION_ROWS];
  const int64_t rows = count * group(), head_dim = model_.head_dim;
  load_queries(block, kv_head, token, count, q);
  memset(merged, 0, size_t(rows * width()) * sizeof *merged);
  for (int64_t row = 0; row < rows; ++row) {
    tops[row] = NO_SCORE;
    totals[row] = 0.0f;
  }

  const Place& at = call_.places[token];
  const int64_t end = at.position + count, oldest = at.position - block.window + 1;
  const int64_t seen = block.window != 0 && oldest > 0 ? oldest : 0;
  awq_attention_job job = job_of(block, token, count, kv_head, q);
  job.maxima = maxima;
  job.sums = sums;
  job.out = out;
  for (int64_t begin = seen / SPLIT * SPLIT; begin < end; begin += SPLIT) {
    job.begin = seen > begin ? seen : begin;
    job.end = begin + SPLIT < end ? begin + SPLIT : end;
    ops_.attend_to(job);
    for (int64_t row = 0; row < rows; ++row)
      ops_.merge({out + row * width(), maxima[row], sums[row], width(), merged + row * width(), tops + row,
                  totals + row});
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = kv_head * group() + row % group();
    uint16_t* to = buffers_.x + ((token + row / group()) * model_.heads + head) * head_dim;
    ops_.scale(merged + row * width(), 1.0f / totals[row], head_dim, to);
  }
}

// Units [begin, end) of all key/value heads' splits, head by head.
void Step::attend_splits(const awq_block& block, int64_t begin, int64_t end, int64_t splits) {
  alignas(64) uint16_t q[ATTENTION_ROWS * MAX_HEAD];
  const int64_t past = call_.places[0].position + 1, oldest = block.window != 0 ? past - block.window : 0;
  awq_attention_job job{};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t kv_head = unit / splits, first = unit % splits * SPLIT, first_row = unit * group();
    if (unit == begin || first == 0) {
      load_queries(block, kv_head, 0, 1, q);
      job = job_of(block, 0, 1, kv_head, q);
    }
    job.end = first + SPLIT < past ? first + SPLIT : past;
    const int64_t seen = oldest > first ? oldest : first;
    job.begin = seen < job.end ? seen : job.end;
    job.maxima = buffers_.split_maxima + first_row;
    job.sums = buffers_.split_sums + first_row;
    job.out = buffers_.split_out + first_row * width();
    ops_.attend_to(job);
  }
}

// out (head_dim)
void Step::merge_splits(int64_t head, int64_t splits, uint16_t* out) {
  alignas(64) float merged[MAX_HEAD] = {};
  float top = NO_SCORE, total = 0.0f;
  for (int64_t split = 0; split < splits; ++split) {
    const int64_t row = (head / group() * splits + split) * group() + head % group();
    ops_.merge({buffers_.split_out + row * width(), buffers_.split_maxima[row], buffers_.split_sums[row], width(),
                merged, &top, &total});
  }
  ops_.scale(merged, 1.0f / total, model_.head_dim, out);
}

}  // namespace awq
