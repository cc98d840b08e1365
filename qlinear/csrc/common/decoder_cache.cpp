// The attention of a step: keys and values into the cache, and queries over it.
#include "decoder_step.h"

namespace awq {
namespace {

void store_key(const uint16_t* key, int64_t head_dim, int64_t position, int64_t width, uint16_t* keys) {
  // (width / 2, 16 positions, 2): pairs of features, 16 pairs apart
  uint16_t* to = keys + position / CACHE_TILE * CACHE_TILE * width + position % CACHE_TILE * 2;
  for (int64_t d = 0; d < head_dim; d += 2) memcpy(to + d * CACHE_TILE, key + d, 2 * sizeof *key);
}

void store_value(const uint16_t* value, int64_t head_dim, int64_t position, int64_t width, uint16_t* values) {
  // (positions / 2, width, 2)
  uint16_t* to = values + position / 2 * 2 * width + position % 2;
  for (int64_t d = 0; d < head_dim; ++d) to[2 * d] = value[d];
}

}  // namespace

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
    uint16_t key[MAX_HEAD];
    const int64_t head_dim = model_.head_dim;
    for (int64_t token = begin; token < end; ++token) {
      const Place& at = call_.places[token];
      const uint16_t* k = buffers_.qkv + token * qkv_width() + model_.heads * head_dim;
      const uint16_t* v = k + model_.kv_heads * head_dim;
      for (int64_t h = 0; h < model_.kv_heads; ++h) {
        rope(block, block.k_norm, token, k + h * head_dim, key);
        store_key(key, head_dim, at.position, width(), cache_of(block.keys, at.slot, h));
        store_value(v + h * head_dim, head_dim, at.position, width(), cache_of(block.values, at.slot, h));
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
  if (call_.count > 1) {
    const int64_t most = ATTENTION_ROWS / group();  // tokens of a unit
    const auto units = [&](int64_t text) {
      return model_.kv_heads * ((call_.readings[text].count + most - 1) / most);
    };
    member_.share(units_of_parts(call_.texts, units), 1, [&](int64_t begin, int64_t end) {
      for_parts(call_.texts, units, begin, end, [&](int64_t text, int64_t unit, int64_t) {
        int64_t before = unit / model_.kv_heads * most;
        const int64_t left = call_.readings[text].count - before;
        for (int64_t i = 0; i < text; ++i) before += call_.readings[i].count;
        attend_rows(block, before, left < most ? left : most, unit % model_.kv_heads);
      });
    });
    member_.share(input.blocks(), 1, [&](int64_t unit, int64_t) { input.ready(unit); });
  } else {
    const int64_t splits = call_.places[0].position / SPLIT + 1;
    member_.share(model_.kv_heads * splits, 1, [&](int64_t unit, int64_t) { attend_split(block, unit, splits); });
    member_.share(1, 1, [&](int64_t, int64_t) {
      merge_splits(splits, input.row(0));
      input.ready(0);
    });
  }
  return input;
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
  for (int64_t begin = seen / SPLIT * SPLIT; begin < end; begin += SPLIT) {
    ops_.attend({q, cache_of(block.keys, at.slot, kv_head), cache_of(block.values, at.slot, kv_head), rows, group(),
                 at.position, block.window, seen > begin ? seen : begin, begin + SPLIT < end ? begin + SPLIT : end,
                 width(), model_.attention_scale, model_.attention_cap, maxima, sums, out});
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

void Step::attend_split(const awq_block& block, int64_t unit, int64_t splits) {
  alignas(64) uint16_t q[ATTENTION_ROWS * MAX_HEAD];
  const Place& at = call_.places[0];
  const int64_t kv_head = unit / splits, begin = unit % splits * SPLIT, end = at.position + 1;
  load_queries(block, kv_head, 0, 1, q);

  const int64_t oldest = end - block.window, first_row = unit * group();
  const int64_t seen = block.window != 0 && oldest > begin ? oldest : begin;
  const int64_t last = begin + SPLIT < end ? begin + SPLIT : end;
  ops_.attend({q, cache_of(block.keys, at.slot, kv_head), cache_of(block.values, at.slot, kv_head), group(), group(),
               at.position, block.window, seen < last ? seen : last, last, width(), model_.attention_scale,
               model_.attention_cap, buffers_.split_maxima + first_row, buffers_.split_sums + first_row,
               buffers_.split_out + first_row * width()});
}

void Step::merge_splits(int64_t splits, uint16_t* out) {
  for (int64_t head = 0; head < model_.heads; ++head) {
    alignas(64) float merged[MAX_HEAD] = {};
    float top = NO_SCORE, total = 0.0f;
    for (int64_t split = 0; split < splits; ++split) {
      const int64_t row = (head / group() * splits + split) * group() + head % group();
      ops_.merge({buffers_.split_out + row * width(), buffers_.split_maxima[row], buffers_.split_sums[row], width(),
                  merged, &top, &total});
    }
    ops_.scale(merged, 1.0f / total, model_.head_dim, out + head * model_.head_dim);
  }
}

}  // namespace awq
