#include "decoder_step.h"

namespace awq {

int64_t Step::phases(const awq_model& model) {
  return 1 + model.layers * 18 + 3 * ((model.chunk + HEAD_ROWS - 1) / HEAD_ROWS);
}

void Step::run() {
  embed();
  const uint16_t* delta = nullptr;  // what the last block's MLP adds, and the norm it goes through
  const float* after = nullptr;
  for (int64_t i = 0; i < model_.layers; ++i) {
    const awq_block& block = model_.blocks[i];
    add_norm(delta, after, {block.input_norm, block.input_bias}, block.qkv)
        .multiply(member_, block.qkv, buffers_.qkv);
    if (model_.parallel) {
      run_parallel(block);
    } else {
      run_attention(block);
      block.mixture == nullptr ? run_mlp(block) : run_mixture(block);
    }
    delta = buffers_.delta;
    after = block.output_norm;
  }
  write_logits(delta, after);
}

void Step::embed() {
  member_.share(call_.count, member_.even(call_.count), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      ops_.embed(model_.embedding + call_.places[i].token * model_.hidden, model_.embedding_scale, model_.hidden,
                 buffers_.residual + i * model_.hidden);
  });
}

// residual += delta, or its norm; the norm of the residual is what `next` reads.
Input Step::add_norm(const uint16_t* delta, const float* after, Norm norm, const awq_projection& next) {
  const Input input(next, buffers_.x, buffers_.laid_out, call_.count);
  const int64_t hidden = model_.hidden;
  member_.share(input.blocks(), 1, [&](int64_t unit, int64_t) {
    for (int64_t row = input.first_row(unit); row < input.first_row(unit + 1); ++row) {
      float* residual = buffers_.residual + row * hidden;
      if (delta != nullptr) ops_.add(delta + row * hidden, after, model_.epsilon, hidden, residual);
      read_residual(residual, norm, input.row(row));
    }
    input.ready(unit);
  });
  return input;
}

// The norm of a row of the residual, or, where there is no norm, the row itself.
void Step::read_residual(const float* residual, Norm norm, uint16_t* out) const {
  const int64_t hidden = model_.hidden;
  if (norm.weight == nullptr) ops_.scale(residual, 1.0f, hidden, out);
  else if (model_.layer_norm) ops_.layer_norm(residual, norm.weight, norm.bias, model_.epsilon, hidden, out);
  else ops_.norm(residual, norm.weight, model_.epsilon, hidden, out);
}

// What the last projection has read, as `next` wants it.
Input Step::read_again(const awq_projection& next) {
  const Input input(next, buffers_.x, buffers_.laid_out, call_.count);
  member_.share(input.blocks(), 1, [&](int64_t unit, int64_t) { input.ready(unit); });
  return input;
}

// residual += delta, or its norm
void Step::add(const float* after) {
  const int64_t hidden = model_.hidden;
  member_.share(call_.count, member_.even(call_.count), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      ops_.add(buffers_.delta + row * hidden, after, model_.epsilon, hidden, buffers_.residual + row * hidden);
  });
}

void Step::run_attention(const awq_block& block) {
  norm_heads(block);
  write_kv(block);
  attend(block).multiply(member_, block.o, buffers_.delta);
}

// Gate and up come before the attention, which needs the room of what they read.
void Step::run_parallel(const awq_block& block) {
  const awq_mlp& mlp = block.mlp;
  read_again(mlp.gate_up).multiply(member_, mlp.gate_up, buffers_.gate_up);
  run_attention(block);
  add(block.attention_norm);
  gate(mlp).multiply(member_, mlp.down, buffers_.delta);
}

void Step::run_mlp(const awq_block& block) {
  const awq_mlp& mlp = block.mlp;
  add_norm(buffers_.delta, block.attention_norm, {block.mlp_norm, block.mlp_bias}, mlp.gate_up)
      .multiply(member_, mlp.gate_up, buffers_.gate_up);
  gate(mlp).multiply(member_, mlp.down, buffers_.delta);
}

// silu(gate) * up, or gelu; or the like of up alone
Input Step::gate(const awq_mlp& mlp) {
  const Input input(mlp.down, buffers_.x, buffers_.laid_out, call_.count);
  const int64_t n = inputs_of(mlp.down), width = mlp.plain ? n : 2 * n;
  member_.share(input.blocks(), 1, [&](int64_t unit, int64_t) {
    for (int64_t row = input.first_row(unit); row < input.first_row(unit + 1); ++row) {
      const uint16_t* gate_up = buffers_.gate_up + row * width;
      if (mlp.plain) ops_.activate(gate_up, n, model_.activation, mlp.curve, input.row(row));
      else ops_.gate(gate_up, gate_up + n, n, model_.activation, input.row(row));
    }
    input.ready(unit);
  });
  return input;
}

// The rows asked for through the final norm and the head, some at a time.
void Step::write_logits(const uint16_t* delta, const float* after) {
  const int64_t hidden = model_.hidden;
  for (int64_t first = 0; first < call_.rows; first += HEAD_ROWS) {
    const int64_t rows = call_.rows - first < HEAD_ROWS ? call_.rows - first : HEAD_ROWS;
    const Input input(model_.head, buffers_.x, buffers_.laid_out, rows);
    member_.share(input.blocks(), 1, [&](int64_t unit, int64_t) {
      for (int64_t row = input.first_row(unit); row < input.first_row(unit + 1); ++row) {
        const int64_t token = call_.asked[first + row];
        float* residual = buffers_.residual + token * hidden;
        ops_.add(delta + token * hidden, after, model_.epsilon, hidden, residual);
        read_residual(residual, {model_.final_norm, model_.final_bias}, input.row(row));
      }
      input.ready(unit);
    });
    float* logits = call_.logits + first * model_.vocabulary;
    input.multiply(member_, model_.head, logits);
    if (model_.logit_cap == 0.0f) continue;
    member_.share(rows, 1, [&](int64_t row, int64_t) {
      ops_.cap(model_.logit_cap, model_.vocabulary, logits + row * model_.vocabulary);
    });
  }
}

}  // namespace awq
