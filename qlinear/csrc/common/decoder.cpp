#include "decoder.h"

#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <memory>
#include <new>
#include <vector>

#include "decoder_step.h"
#include "ops.h"
#include "pace.h"

namespace awq {
namespace {

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out aligned parts of one allocation: on a null base it only counts their bytes.
struct Layout {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* at = reinterpret_cast<T*>(base + used);
    used += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return at;
  }
};

constexpr int64_t SMALLEST_GROUP = 32;
constexpr int64_t ELSEWHERE = -1;  // where no text goes on

// What the MLPs of a model need at most, for each token. logits: of the router; slots: rows of experts; inner: values
// between gate and down, of all of them; widest: of one.
struct MlpSizes {
  int64_t experts = 0, logits = 0, slots = 0, inner = 0, widest = 0;
};

MlpSizes mlp_sizes(const awq_model& m) {
  MlpSizes sizes;
  for (int64_t i = 0; i < m.layers; ++i) {
    const awq_mixture* mixture = m.blocks[i].mixture;
    int64_t inner = 0, widest = 0;
    if (mixture == nullptr) {
      inner = widest = inputs_of(m.blocks[i].mlp.down);
    } else {
      for (int64_t e = 0; e < experts_of(*mixture); ++e) widest = larger(widest, inputs_of(mixture->experts[e].down));
      inner = mixture->router.top_k * widest + (mixture->shared == nullptr ? 0 : inputs_of(mixture->shared->down));
      sizes.experts = larger(sizes.experts, experts_of(*mixture));
      sizes.logits = larger(sizes.logits, outputs_of(mixture->router.logits));
      sizes.slots = larger(sizes.slots, slots_of(*mixture));
    }
    sizes.inner = larger(sizes.inner, inner);
    sizes.widest = larger(sizes.widest, widest);
  }
  return sizes;
}

void lay_out_mixtures(const awq_model& m, const MlpSizes& sizes, Layout& layout, MixtureBuffers& b) {
  const int64_t rows = m.chunk * sizes.slots;
  b.scores = layout.take<float>(m.chunk * sizes.logits);
  b.compared = layout.take<float>(m.chunk * sizes.experts);
  b.chosen = layout.take<int32_t>(rows);
  b.weights = layout.take<float>(rows);
  b.places = layout.take<int32_t>(rows);
  b.tokens = layout.take<int32_t>(rows);
  b.next = layout.take<int32_t>(sizes.experts + 1);
  b.visits = layout.take<Visits>(m.layers);
  for (int64_t i = 0; i < m.layers; ++i) {
    Visit* first = layout.take<Visit>(m.blocks[i].mixture == nullptr ? 0 : experts_of(*m.blocks[i].mixture) + 1);
    if (layout.base != nullptr) b.visits[i] = {first, 0};
  }
  b.x = layout.take<uint16_t>(sizes.slots == 0 ? 0 : m.chunk * larger(sizes.slots * m.hidden, sizes.inner));
  b.out = layout.take<uint16_t>(rows * m.hidden);
}

int64_t lay_out(const awq_model& m, char* base, Buffers& b) {
  const int64_t attended = m.heads * m.head_dim, width = padded_head(m.head_dim);
  const MlpSizes mlps = mlp_sizes(m);
  const int64_t widest = larger(larger(m.hidden, mlps.widest), attended);
  const int64_t laid_out = larger(larger(widest, mlps.slots * m.hidden), mlps.inner);  // values for each token
  const int64_t regions = larger(1, mlps.slots);  // each ends at a multiple of 64 bytes
  const int64_t splits = m.max_tokens / SPLIT + 1;
  Layout layout{base};
  b.residual = layout.take<float>(m.chunk * m.hidden);
  b.x = layout.take<uint16_t>(m.chunk * widest);
  // enough for any instruction set
  b.laid_out = layout.take<float>(m.chunk * (laid_out + laid_out / SMALLEST_GROUP + 32 * regions));
  b.qkv = layout.take<uint16_t>(m.chunk * (m.heads + 2 * m.kv_heads) * m.head_dim);
  b.delta = layout.take<uint16_t>(m.chunk * m.hidden);
  b.gate_up = layout.take<uint16_t>(m.chunk * 2 * mlps.inner);
  b.split_out = layout.take<float>(m.heads * splits * width);
  b.split_maxima = layout.take<float>(m.heads * splits);
  b.split_sums = layout.take<float>(m.heads * splits);
  lay_out_mixtures(m, mlps, layout, b.mixture);
  return layout.used;
}

}  // namespace

Buffers::Buffers(const awq_model& model) {
  memory = aligned_alloc(64, size_t(lay_out(model, nullptr, *this)));
  if (memory == nullptr) throw std::bad_alloc();
  lay_out(model, static_cast<char*>(memory), *this);
}

Buffers::~Buffers() { free(memory); }

}  // namespace awq

struct awq_decoder {
  explicit awq_decoder(const awq_model& given)
      : model(given), blocks(given.blocks, given.blocks + given.layers), buffers(given),
        phases(size_t(awq::Step::phases(given))), places(size_t(given.chunk)), asked(size_t(given.chunk)),
        ends(size_t(given.slots)), paces(size_t(given.slots)) {
    model.blocks = blocks.data();
  }
  awq_model model;
  std::vector<awq_block> blocks;
  awq::Buffers buffers;
  std::vector<awq::Phase> phases;
  std::vector<awq::Place> places;
  std::vector<int64_t> asked;
  std::vector<int64_t> ends;     // of what was read last, slot by slot, or ELSEWHERE
  std::vector<awq::Pace> paces;  // of calls that read a token of each of 1, 2, 3, ... texts
};

awq_decoder* awq_decoder_create(const awq_model* model) try {
  return new awq_decoder(*model);
} catch (const std::bad_alloc&) {
  return nullptr;
}

void awq_decoder_free(awq_decoder* decoder) { delete decoder; }

int64_t awq_cache_bytes(int64_t max_tokens, int64_t kv_heads, int64_t head_dim, int32_t kv_bits) {
  return kv_heads * awq::padded_positions(max_tokens) / awq::CACHE_TILE *
         awq::cache_tile_bytes(awq::padded_head(head_dim), kv_bits);
}

void awq_decoder_copy(awq_decoder* decoder, int64_t source, int64_t target, int64_t count) {
  const awq_model& m = decoder->model;
  const int64_t of_head = awq_cache_bytes(m.max_tokens, 1, m.head_dim, m.kv_bits), of_slot = m.kv_heads * of_head;
  const int64_t copied = (count + awq::CACHE_TILE - 1) / awq::CACHE_TILE *
                         awq::cache_tile_bytes(awq::padded_head(m.head_dim), m.kv_bits);
  for (const awq_block& block : decoder->blocks)
    for (uint8_t* cache : {block.keys, block.values})
      for (int64_t head = 0; head < m.kv_heads; ++head)
        memmove(cache + target * of_slot + head * of_head, cache + source * of_slot + head * of_head, size_t(copied));
  decoder->ends[size_t(target)] = awq::ELSEWHERE;
}

void awq_decoder_read(awq_decoder* decoder, const awq_reading* readings, int64_t texts, float* logits) {
  using Clock = std::chrono::steady_clock;
  int64_t count = 0, rows = 0;
  for (int64_t text = 0; text < texts; ++text) {
    const awq_reading& r = readings[text];
    const int64_t end = r.position + r.count, first = (end - 1) / awq::CACHE_READ * awq::CACHE_READ;
    int64_t& last_end = decoder->ends[size_t(r.slot)];
    for (int64_t i = 0; i < r.count; ++i) {
      if (i >= r.count - r.rows) decoder->asked[size_t(rows++)] = count;
      decoder->places[size_t(count++)] = {r.tokens[i], r.position + i, r.slot, false};
    }
    decoder->places[size_t(count - 1)].clears = first >= r.position || r.position != last_end;
    last_end = end;
  }
  const awq::Call call{readings, texts, count, rows, decoder->places.data(), decoder->asked.data(), logits};
  awq::Pace& pace = decoder->paces[count == texts ? size_t(texts - 1) : 0];
  const int64_t threads = pace.threads(awq::num_threads());
  const Clock::time_point begin = Clock::now();
  awq::run_together(decoder->phases, threads, [&](awq::Member member) {
    awq::Step(decoder->model, decoder->buffers, call, member).run();
  });
  if (count == texts) pace.took(std::chrono::duration<double>(Clock::now() - begin).count());
}

void awq_rms_norm(const float* x, const float* weight, float epsilon, int64_t n, uint16_t* out) {
  awq::ops().norm(x, weight, epsilon, n, out);
}

void awq_activate(const uint16_t* x, int64_t n, int32_t activation, const float* curve, uint16_t* out) {
  awq::ops().activate(x, n, activation, curve, out);
}

void awq_layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int64_t n, uint16_t* out) {
  awq::ops().layer_norm(x, weight, bias, epsilon, n, out);
}

void awq_rope(const awq_rope_job* job, const uint16_t* in, uint16_t* out) { awq::ops().rope(*job, in, out); }

void awq_attend(const awq_attention_job* job) { awq::ops().attend_to(*job); }

void awq_gate(const uint16_t* gate, const uint16_t* up, int64_t n, int32_t activation, uint16_t* out) {
  awq::ops().gate(gate, up, n, activation, out);
}

void awq_route(const awq_route_job* job) { awq::ops().route(*job); }

void awq_mix(const awq_mix_job* job, uint16_t* out) { awq::ops().mix(*job, out); }

void awq_dense(const awq_matrix* matrix, const uint16_t* x, int64_t rows, uint16_t* y) {
  awq::ops().dense({*matrix, x, rows, 0, matrix->weight.n}, y, matrix->weight.n);
}
