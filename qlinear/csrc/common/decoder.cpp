#include "decoder.h"

#include <stdlib.h>

#include <memory>
#include <vector>

#include "decoder_step.h"
#include "ops.h"

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

int64_t lay_out(const awq_model& m, char* base, Buffers& b) {
  const int64_t attended = m.heads * m.head_dim, width = padded_head(m.head_dim);
  const int64_t widest = larger(larger(m.hidden, m.intermediate), attended);
  const int64_t splits = m.max_tokens / SPLIT + 1;
  Layout layout{base};
  b.residual = layout.take<float>(m.chunk * m.hidden);
  b.x = layout.take<uint16_t>(m.chunk * widest);
  b.laid_out = layout.take<float>(m.chunk * (widest + widest / SMALLEST_GROUP + 1));  // enough for any instruction set
  b.qkv = layout.take<uint16_t>(m.chunk * (m.heads + 2 * m.kv_heads) * m.head_dim);
  b.delta = layout.take<uint16_t>(m.chunk * m.hidden);
  b.gate_up = layout.take<uint16_t>(m.chunk * 2 * m.intermediate);
  b.split_out = layout.take<float>(m.heads * splits * width);
  b.split_maxima = layout.take<float>(m.heads * splits);
  b.split_sums = layout.take<float>(m.heads * splits);
  return layout.used;
}

}  // namespace

Buffers::Buffers(const awq_model& model) {
  memory = aligned_alloc(64, size_t(lay_out(model, nullptr, *this)));
  lay_out(model, static_cast<char*>(memory), *this);
}

Buffers::~Buffers() { free(memory); }

}  // namespace awq

struct awq_decoder {
  explicit awq_decoder(const awq_model& given)
      : model(given), blocks(given.blocks, given.blocks + given.layers), buffers(given),
        phases(size_t(awq::Step::phases(given))) {
    model.blocks = blocks.data();
  }
  awq_model model;
  std::vector<awq_block> blocks;
  awq::Buffers buffers;
  std::vector<awq::Phase> phases;
};

awq_decoder* awq_decoder_create(const awq_model* model) { return new awq_decoder(*model); }
void awq_decoder_free(awq_decoder* decoder) { delete decoder; }

int64_t awq_cache_elements(int64_t max_tokens, int64_t kv_heads, int64_t head_dim) {
  return kv_heads * awq::padded_positions(max_tokens) * awq::padded_head(head_dim);
}

void awq_decoder_read(awq_decoder* decoder, const int64_t* tokens, int64_t count, int64_t position, int64_t rows,
                      float* logits) {
  const awq::Call call{tokens, count, position, rows, logits};
  awq::run_together(decoder->phases, [&](awq::Member member) {
    awq::Step(decoder->model, decoder->buffers, call, member).run();
  });
}

void awq_rms_norm(const float* x, const float* weight, float epsilon, int64_t n, uint16_t* out) {
  awq::ops().norm(x, weight, epsilon, n, out);
}

void awq_rope(const awq_rope_job* job, const uint16_t* in, uint16_t* out) { awq::ops().rope(*job, in, out); }

void awq_attend(const awq_attention_job* job) { awq::ops().attend(*job); }

void awq_gate(const uint16_t* gate, const uint16_t* up, int64_t n, int32_t activation, uint16_t* out) {
  awq::ops().gate(gate, up, n, activation, out);
}

void awq_dense(const awq_matrix* matrix, const uint16_t* x, int64_t rows, uint16_t* y) {
  awq::ops().dense({*matrix, x, rows, 0, matrix->weight.n}, y, matrix->weight.n);
}
