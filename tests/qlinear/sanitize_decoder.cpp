// The decoder under AddressSanitizer and UndefinedBehaviorSanitizer: a tiny random model of odd sizes on every
// instruction set, in buffers of exactly the promised length. What is read token by token, in chunks, at once and beside
// another text has to have the same bits, and the instruction sets have to agree; the arithmetic itself is checked
// against float32 models by test_fused.py.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <list>
#include <random>
#include <vector>

#include "../../qlinear/csrc/common/decoder.h"

namespace {

// Odd in every way the interface allows: N no multiple of a tile, heads padded, chunks no multiple of anything. The
// positions are a multiple of a cache step, so that the cache is used to its last value.
constexpr int64_t HIDDEN = 96, INTERMEDIATE = 160, LAYERS = 2, TOKENS = 384, CHUNK = 37, SLOTS = 2;

// The second block's experts; none: it is a gated MLP like the first.
struct Routed {
  int64_t experts, top_k, groups, top_groups, inner, shared_inner;
  awq_scoring scoring;
  bool dense, corrected, shared_gate;
};

struct Shape {
  int bits, group;
  int64_t heads, kv_heads, head_dim, rotary_dim, vocabulary, window;
  bool dense_head, every_norm;
  Routed routed;
  bool parallel = false;  // with layer norms
  bool int8 = false;  // activations, and keys and values
};

std::mt19937 generator(1);

uint16_t to_bf16(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  return uint16_t((word + 0x8000) >> 16);
}

// Everything that a model points to, and the model.
class Random {
 public:
  explicit Random(const Shape& s) : shape_(s) {
    const int64_t attended = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim;
    const int32_t kv_bits = s.int8 ? 8 : 16;
    for (int64_t position = 0; position < TOKENS; ++position)
      for (int64_t i = 0; i < s.rotary_dim / 2; ++i) {
        const float angle = float(position) * powf(10000, -2.0f * float(i) / float(s.rotary_dim));
        cosines_.push_back(cosf(angle));
        sines_.push_back(sinf(angle));
      }
    for (int64_t i = 0; i < LAYERS; ++i) {
      awq_block block = {};
      block.input_norm = norm(HIDDEN);
      block.mlp_norm = norm(HIDDEN);
      if (s.parallel) block.input_bias = norm(HIDDEN);
      if (s.every_norm) {
        if (i == 1) block.mlp_norm = nullptr;
        block.attention_norm = norm(HIDDEN);
        block.output_norm = norm(HIDDEN);
        block.q_norm = norm(s.head_dim);
        block.k_norm = norm(s.head_dim);
      } else if (i == 1 && !s.parallel) {
        block.all_q_norm = norm(attended);
        block.all_k_norm = norm(kv_width);
      }
      block.qkv = {{packed(attended, HIDDEN), packed(kv_width, HIDDEN), packed(kv_width, HIDDEN)}, 3};
      block.o = {{packed(HIDDEN, attended)}, 1};
      if (i == 1 && s.routed.experts > 0) block.mixture = mixture(s.routed);
      else block.mlp = s.parallel && i == 1 ? plain_mlp() : mlp(INTERMEDIATE, false);
      block.cosines = cosines_.data();
      block.sines = sines_.data();
      const size_t bytes = size_t(SLOTS * awq_cache_bytes(TOKENS, s.kv_heads, s.head_dim, kv_bits));
      bytes_.emplace_back(bytes);
      block.keys = bytes_.back().data();
      bytes_.emplace_back(bytes);
      block.values = bytes_.back().data();
      block.window = i % 2 == 0 ? 0 : s.window;
      blocks_.push_back(block);
    }
    awq_matrix head = s.dense_head ? dense(s.vocabulary, HIDDEN) : packed(s.vocabulary, HIDDEN);
    if (s.dense_head && s.int8) head = in_bytes(head);
    const float attention_cap = s.every_norm ? 20.0f : 0.0f, logit_cap = s.every_norm ? 30.0f : 0.0f;
    model_ = {blocks_.data(), bf16(s.vocabulary * HIDDEN, 1.0f), norm(HIDDEN), s.parallel ? norm(HIDDEN) : nullptr,
              {{head}, 1}, LAYERS, s.vocabulary, HIDDEN, s.heads, s.kv_heads, s.head_dim, s.rotary_dim, TOKENS, SLOTS, CHUNK, 1e-5f, 1.5f,
              1.0f / sqrtf(float(s.head_dim)), attention_cap, logit_cap,
              s.every_norm ? AWQ_GELU_TANH : AWQ_SILU, s.dense_head, s.parallel, s.parallel,
              s.every_norm && !s.dense_head, kv_bits};
  }

  const awq_model& model() const { return model_; }

 private:
  float uniform() { return float(generator() % 2001) / 1000 - 1; }

  const uint16_t* bf16(int64_t count, float size) {
    halves_.emplace_back(size_t(count));
    for (uint16_t& value : halves_.back()) value = to_bf16(size * uniform());
    return halves_.back().data();
  }

  awq_matrix in_bytes(const awq_matrix& matrix) {
    const int64_t n = matrix.weight.n, k = matrix.weight.k, groups = (k + 63) / 64;
    bytes_.emplace_back(size_t(n * groups * 64));
    int8_t* codes = reinterpret_cast<int8_t*>(bytes_.back().data());
    halves_.emplace_back(size_t(n * groups));
    awq_to_bytes(matrix.dense, n, k, codes, halves_.back().data());
    return {matrix.weight, nullptr, codes, halves_.back().data()};
  }

  const float* norm(int64_t n) {
    floats_.emplace_back(size_t(n));
    for (float& value : floats_.back()) value = 1.0f + 0.2f * uniform();
    return floats_.back().data();
  }

  awq_mlp mlp(int64_t inner, bool is_dense) {
    const auto matrix = [&](int64_t n, int64_t k) { return is_dense ? dense(n, k) : packed(n, k); };
    return {{{matrix(inner, HIDDEN), matrix(inner, HIDDEN)}, 2}, {{matrix(HIDDEN, inner)}, 1}, false, nullptr};
  }

  awq_mlp plain_mlp() {
    return {{{packed(INTERMEDIATE, HIDDEN)}, 1}, {{packed(HIDDEN, INTERMEDIATE)}, 1}, true, nullptr};
  }

  const awq_mixture* mixture(const Routed& r) {
    mlps_.emplace_back();
    for (int64_t i = 0; i < r.experts; ++i) mlps_.back().push_back(mlp(r.inner, r.dense));
    awq_mixture mixture = {};
    mixture.router = {{{dense(r.experts, HIDDEN)}, 1}, r.corrected ? norm(r.experts) : nullptr, r.top_k, r.groups,
                      r.top_groups, 0.7f, 0.5f, r.scoring, r.corrected};
    mixture.experts = mlps_.back().data();
    if (r.shared_inner > 0) {
      mlps_.push_back({mlp(r.shared_inner, false)});
      mixture.shared = mlps_.back().data();
    }
    if (r.shared_gate) mixture.shared_gate = dense(1, HIDDEN);
    mixtures_.push_back(mixture);
    return &mixtures_.back();
  }

  awq_matrix dense(int64_t n, int64_t k) {
    return {{nullptr, norm(n), n, k, 0, 0, 0}, bf16(n * k, 1.7f / sqrtf(float(k)))};
  }

  awq_matrix packed(int64_t n, int64_t k) {
    const int bits = shape_.bits, group = shape_.group;
    std::vector<uint32_t> words(size_t(n * k * bits / 32)), zeros(size_t((n * bits + 31) / 32 * (k / group)));
    for (uint32_t& word : words) word = generator();
    for (uint32_t& word : zeros) word = generator();
    const float spread = bits == 4 ? 6.5f : 3.2f;
    const std::vector<uint16_t> scales(size_t(n * k / group), to_bf16(1.0f / (spread * sqrtf(float(k)))));
    bytes_.emplace_back(size_t(awq_packed_bytes(n, k, bits, group)));
    awq_pack(words.data(), zeros.data(), scales.data(), n, k, bits, group, bytes_.back().data());
    return {{bytes_.back().data(), nullptr, n, k, bits, group, shape_.int8}, nullptr};
  }

  Shape shape_;
  std::list<std::vector<uint16_t>> halves_;
  std::list<std::vector<float>> floats_;
  std::list<std::vector<uint8_t>> bytes_;
  std::list<std::vector<awq_mlp>> mlps_;
  std::list<awq_mixture> mixtures_;
  std::vector<float> cosines_, sines_;
  std::vector<awq_block> blocks_;
  awq_model model_;
};

// Logits of a text, of which the first `prompt` tokens are read in chunks of at most `chunk` and the rest singly.
std::vector<float> read(const awq_model& model, const std::vector<int64_t>& text, int64_t prompt, int64_t chunk) {
  awq_decoder* decoder = awq_decoder_create(&model);
  std::vector<float> logits;
  const int64_t length = int64_t(text.size());
  for (int64_t at = 0, count; at < length; at += count) {
    count = at < prompt ? (prompt - at < chunk ? prompt - at : chunk) : 1;
    const std::vector<int64_t> tokens(text.begin() + at, text.begin() + at + count);
    std::vector<float> part(size_t(count * model.vocabulary));
    const awq_reading silent = {tokens.data(), 0, at, count, 0}, spoken = {tokens.data(), 0, at, count, count};
    awq_decoder_read(decoder, &silent, 1, nullptr);  // no logits wanted; then the same tokens again
    awq_decoder_read(decoder, &spoken, 1, part.data());
    logits.insert(logits.end(), part.begin(), part.end());
  }
  awq_decoder_free(decoder);
  return logits;
}

// The same of a text in the last slot, read in chunks of at most 13 while the first slot reads it token by token.
std::vector<float> read_together(const awq_model& model, const std::vector<int64_t>& text) {
  awq_decoder* decoder = awq_decoder_create(&model);
  std::vector<float> logits;
  for (int64_t at = 0, first = 0; at < TOKENS; ++first) {
    const int64_t count = std::min(int64_t(1) + first % 13, TOKENS - at);
    const std::vector<int64_t> single(text.begin() + first, text.begin() + first + 1);
    const std::vector<int64_t> tokens(text.begin() + at, text.begin() + at + count);
    const awq_reading readings[] = {{single.data(), 0, first, 1, 0}, {tokens.data(), SLOTS - 1, at, count, count}};
    std::vector<float> part(size_t(count * model.vocabulary));
    awq_decoder_read(decoder, readings, 2, part.data());
    logits.insert(logits.end(), part.begin(), part.end());
    at += count;
  }
  awq_decoder_free(decoder);
  return logits;
}

// Root mean square, relative, less the rows that differ most: `odd` of the TOKENS. Where two experts are as good, the
// rounding of activations decides, and what a token then gives has little to do with what it gave elsewhere.
double distance(const std::vector<float>& a, const std::vector<float>& b, size_t odd) {
  const size_t width = a.size() / TOKENS;
  std::vector<double> differences(TOKENS);
  double size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    differences[i / width] += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    size += double(b[i]) * b[i];
  }
  std::sort(differences.begin(), differences.end());
  double difference = 0;
  for (size_t i = 0; i < TOKENS - odd; ++i) difference += differences[i];
  return sqrt(difference / size);
}

}  // namespace

int main() {
  // Rounding of activations to bf16 in another order; a wrong operation is off by far more.
  constexpr double TOLERANCE = 0.03;
  int passed = 0, failed = 0;
  std::vector<const char*> isas;
  for (const char* isa : {"scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx"}) {
    if (awq_select_isa(isa) == 0) isas.push_back(isa);
    else printf("%s: not on this machine\n", isa);
  }
  std::vector<int64_t> text(size_t(TOKENS), 0);
  for (const Shape& shape :
       {Shape{4, 32, 6, 2, 16, 16, 131, 0, false, false, {}}, Shape{4, 32, 6, 3, 16, 8, 70, 0, false, false, {}, true},
        Shape{3, 32, 4, 4, 24, 16, 97, 50, true, true, {}},
        Shape{4, 32, 6, 2, 16, 16, 131, 0, false, false, {}, false, true},
        Shape{3, 32, 4, 2, 32, 32, 64, 0, true, false, {3, 3, 1, 1, 32, 96, AWQ_SIGMOID, false, true, false}, false, true},
        Shape{4, 32, 2, 1, 48, 12, 33, 270, false, true, {7, 3, 1, 1, 64, 96, AWQ_SOFTMAX, false, false, true}},
        Shape{3, 32, 8, 1, 40, 40, 64, 1, true, false, {36, 5, 12, 7, 32, 0, AWQ_SIGMOID, false, true, false}},
        Shape{4, 32, 4, 2, 32, 32, 64, 0, true, false, {3, 3, 1, 1, 37, 160, AWQ_SIGMOID, true, true, false}}}) {
    const size_t odd = shape.routed.experts > shape.routed.top_k ? TOKENS / 10 : 0;
    const Random random(shape);
    for (int64_t& token : text) token = int64_t(generator() % uint32_t(shape.vocabulary));
    std::vector<float> first;
    for (const char* isa : isas) {
      awq_select_isa(isa);
      for (const int threads : {1, 3}) {
        awq_set_threads(nullptr, nullptr, threads);
        const std::vector<float> whole = read(random.model(), text, TOKENS, CHUNK);
        if (first.empty()) first = whole;
        const double off = distance(whole, first, odd);
        const bool same = read(random.model(), text, 40, 13) == whole && read(random.model(), text, 0, 1) == whole &&
                          read_together(random.model(), text) == whole;
        const bool good = off < TOLERANCE && same;
        if (!good)
          printf("%s, %d heads of %d: off by %g, %s bits\n", isa, int(shape.heads), int(shape.head_dim), off,
                 same ? "the same" : "other");
        ++(good ? passed : failed);
      }
    }
  }
  awq_set_threads(nullptr, nullptr, 1);
  printf("decoder: %d passed, %d failed\n", passed, failed);
  return failed != 0;
}
