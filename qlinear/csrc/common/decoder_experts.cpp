// A block's mixture of experts: every token chooses some, and each expert reads the rows of its tokens at once. So a
// single token reads the weights of its own experts only, and those of all of them are one piece of work.
#include <math.h>

#include "decoder_step.h"

namespace awq {

void Step::run_mixture(const awq_block& block) {
  const awq_mixture& mixture = *block.mixture;
  const MixtureBuffers& m = buffers_.mixture;
  const int64_t hidden = model_.hidden, slots = slots_of(mixture);
  add_norm(buffers_.delta, block.attention_norm, {block.mlp_norm, block.mlp_bias}, mixture.router.logits)
      .multiply(member_, mixture.router.logits, m.scores);
  choose_experts(mixture);
  Visits& visits = m.visits[&block - model_.blocks];
  member_.share(1, 1, [&](int64_t, int64_t) { sort_by_expert(mixture, visits); });

  fill_rows(visits, &awq_mlp::gate_up, [&](const Visit& visit, int64_t row, uint16_t* to) {
    memcpy(to, buffers_.x + m.tokens[visit.first + row] * hidden, size_t(hidden) * sizeof *to);
  });
  multiply_rows(visits, &awq_mlp::gate_up, [&](const Visit& visit) { return buffers_.gate_up + 2 * visit.inner; });
  fill_rows(visits, &awq_mlp::down, [&](const Visit& visit, int64_t row, uint16_t* to) {
    const int64_t n = inputs_of(visit.mlp->down);
    const uint16_t* gate_up = buffers_.gate_up + 2 * (visit.inner + row * n);
    ops_.gate(gate_up, gate_up + n, n, model_.activation, to);
  });
  multiply_rows(visits, &awq_mlp::down, [&](const Visit& visit) { return m.out + visit.first * hidden; });

  // In the order of a token's slots, whichever thread adds them up.
  member_.share(call_.count, member_.even(call_.count), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token)
      ops_.mix({m.out, m.places + token * slots, m.weights + token * slots, slots, hidden},
               buffers_.delta + token * hidden);
  });
}

void Step::choose_experts(const awq_mixture& mixture) {
  const MixtureBuffers& m = buffers_.mixture;
  const int64_t experts = experts_of(mixture), slots = slots_of(mixture), top_k = mixture.router.top_k;
  const int64_t logits = outputs_of(mixture.router.logits);
  member_.share(call_.count, member_.even(call_.count), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      int32_t* chosen = m.chosen + token * slots;
      float* weights = m.weights + token * slots;
      ops_.route({&mixture.router, m.scores + token * logits, m.compared + token * experts, chosen, weights});
      if (mixture.shared == nullptr) continue;
      chosen[top_k] = int32_t(experts);
      weights[top_k] = 1.0f;
      if (mixture.shared_gate.dense == nullptr) continue;
      float logit;
      ops_.dense_logits({mixture.shared_gate, buffers_.x + token * model_.hidden, 1, 0, 1}, &logit, 1);
      weights[top_k] = 1.0f / (1.0f + expf(-logit));
    }
  });
}

// Counting sort of the slots by expert.
void Step::sort_by_expert(const awq_mixture& mixture, Visits& visits) {
  const MixtureBuffers& m = buffers_.mixture;
  const int64_t experts = experts_of(mixture), slots = slots_of(mixture), count = call_.count * slots;
  memset(m.next, 0, size_t(experts + 1) * sizeof *m.next);
  for (int64_t i = 0; i < count; ++i) ++m.next[m.chosen[i]];

  Visit at = {};
  visits.count = 0;
  for (int64_t expert = 0; expert <= experts; ++expert) {
    at.rows = m.next[expert];
    if (at.rows == 0) continue;
    at.mlp = expert < experts ? mixture.experts + expert : mixture.shared;
    m.next[expert] = int32_t(at.first);
    visits.first[visits.count++] = at;
    at.first += at.rows;
    at.inner += at.rows * inputs_of(at.mlp->down);
    at.laid_out_hidden += laid_out_bytes(at.mlp->gate_up, at.rows);
    at.laid_out_inner += laid_out_bytes(at.mlp->down, at.rows);
  }

  for (int64_t i = 0; i < count; ++i) {
    const int32_t place = m.next[m.chosen[i]]++;
    m.places[i] = place;
    m.tokens[place] = int32_t(i / slots);
  }
}

// What an expert's gate_up or down reads.
Input Step::input_of(const Visit& visit, awq_projection awq_mlp::*next) const {
  const bool is_first = next == &awq_mlp::gate_up;
  uint16_t* x = buffers_.mixture.x + (is_first ? visit.first * model_.hidden : visit.inner);
  char* laid_out = static_cast<char*>(buffers_.laid_out) + (is_first ? visit.laid_out_hidden : visit.laid_out_inner);
  return Input(visit.mlp->*next, x, laid_out, visit.rows);
}

// fill(visit, row, to) for every row of every expert, each block of which is then laid out.
template <class Fill>
void Step::fill_rows(const Visits& visits, awq_projection awq_mlp::*next, Fill&& fill) {
  const auto blocks = [&](int64_t i) { return input_of(visits.first[i], next).blocks(); };
  const int64_t all = units_of_parts(visits.count, blocks);
  member_.share(all, member_.even(all), [&](int64_t begin, int64_t end) {
    for_parts(visits.count, blocks, begin, end, [&](int64_t i, int64_t first, int64_t last) {
      const Input input = input_of(visits.first[i], next);
      for (int64_t block = first; block < last; ++block) {
        for (int64_t row = input.first_row(block); row < input.first_row(block + 1); ++row)
          fill(visits.first[i], row, input.row(row));
        input.ready(block);
      }
    });
  });
}

// The rows of every expert times its weights, to where out(visit) says.
template <class Out>
void Step::multiply_rows(const Visits& visits, awq_projection awq_mlp::*projection, Out&& out) {
  const auto units = [&](int64_t i) { return input_of(visits.first[i], projection).units(visits.first[i].mlp->*projection); };
  member_.share_runs(units_of_parts(visits.count, units), [&](int64_t begin, int64_t end) {
    for_parts(visits.count, units, begin, end, [&](int64_t i, int64_t first, int64_t last) {
      input_of(visits.first[i], projection).multiply_units(visits.first[i].mlp->*projection, out(visits.first[i]), first, last);
    });
  });
}

}  // namespace awq
