// The input of a projection, and the projection itself, as units of work.
#pragma once

#include "decoder_team.h"
#include "layout.h"
#include "linear.h"
#include "ops.h"

namespace awq {

// In bf16, or in bytes: what reads bf16 rows as they are.
inline bool is_dense(const awq_projection& projection) {
  return projection.part[0].dense != nullptr || projection.part[0].bytes != nullptr;
}

inline int64_t inputs_of(const awq_projection& projection) { return projection.part[0].weight.k; }

inline int64_t outputs_of(const awq_projection& projection) {
  int64_t outputs = 0;
  for (int64_t i = 0; i < projection.parts; ++i) outputs += projection.part[i].weight.n;
  return outputs;
}

inline int64_t group_of(const awq_projection& projection) {
  return is_dense(projection) ? inputs_of(projection) : projection.part[0].weight.group_size;
}

inline const Route& route_of(const awq_projection& projection) {
  return ops().linear(projection.part[0].weight, AWQ_BF16);
}

// bf16 rows (rows, k) at `x`, and the same as packed weights want them, block of rows by block: whoever fills the rows
// of a block calls `ready`.
class Input {
 public:
  Input(const awq_projection& projection, uint16_t* x, void* laid_out, int64_t rows)
      : x_(x), dense_(is_dense(projection)), k_(inputs_of(projection)) {
    laid_ = activations_in(laid_out, route_of(projection), rows, k_, group_of(projection));
  }

  int64_t blocks() const { return laid_.blocks(); }
  int64_t first_row(int64_t block) const { return laid_.first_row(block); }
  uint16_t* row(int64_t index) const { return x_ + index * k_; }
  void ready(int64_t block) const {
    if (!dense_) lay_out_blocks(laid_, x_, k_, block, block + 1);
  }

  // y (rows, outputs of the projection) = x @ weights.T + bias, in bf16 or fp32
  template <class Out>
  void multiply(Member& member, const awq_projection& projection, Out* y) const {
    member.share_runs(units(projection), [&](int64_t begin, int64_t end) {
      multiply_units(projection, y, begin, end);
    });
  }

  // The same in units of work, for those who share them out themselves.
  int64_t units(const awq_projection& projection) const {
    return units_of_parts(projection.parts, [&](int64_t i) { return units_of(projection.part[i]); });
  }

  template <class Out>
  void multiply_units(const awq_projection& projection, Out* y, int64_t begin, int64_t end) const {
    Activations laid = laid_;
    Route wide = *laid_.route;  // the same kernels, but their sums stay fp32
    wide.store_rows = ops().linear_f32.store_rows;
    wide.out_bytes = ops().linear_f32.out_bytes;
    if (sizeof(Out) == sizeof(float)) laid.route = &wide;
    const int64_t stride = outputs_of(projection);
    for_parts(
        projection.parts, [&](int64_t i) { return units_of(projection.part[i]); }, begin, end,
        [&](int64_t i, int64_t first, int64_t last) {
          const int64_t before = units_of_parts(i, [&](int64_t part) { return projection.part[part].weight.n; });
          multiply_part(projection.part[i], laid, y + before, stride, first, last);
        });
  }

 private:
  int64_t units_of(const awq_matrix& part) const {
    return dense_ ? (part.weight.n + DENSE_UNIT - 1) / DENSE_UNIT : unit_count(part.weight, laid_);
  }

  template <class Out>
  void multiply_part(const awq_matrix& part, const Activations& laid, Out* y, int64_t stride, int64_t begin,
                     int64_t end) const {
    if (!dense_) return awq::multiply_units(part.weight, laid, y, stride, begin, end);
    const int64_t n = part.weight.n, last = end * DENSE_UNIT < n ? end * DENSE_UNIT : n;
    multiply_dense({part, x_, laid_.rows, begin * DENSE_UNIT, last}, y, stride);
  }

  static void multiply_dense(const DenseJob& job, uint16_t* y, int64_t stride) { ops().dense(job, y, stride); }
  static void multiply_dense(const DenseJob& job, float* y, int64_t stride) { ops().dense_logits(job, y, stride); }

  Activations laid_;
  uint16_t* x_;
  bool dense_;
  int64_t k_;
};

}  // namespace awq
