// What becomes of the sums of a single row.
#pragma once

#include "layout.h"

namespace awq {

enum OutputKind { OUTPUT_BF16 = 0, OUTPUT_LOGITS = 1, OUTPUT_SILU = 2, OUTPUT_GELU = 3 };

// OUTPUT_LOGITS: fp32, a cap other than 0 on them. OUTPUT_SILU, OUTPUT_GELU: of two weights, gate and up.
struct Output {
  void* y;
  float cap;
  int kind;
};

AWQ_DEVICE float rounded(float value) { return widen(narrow(value)); }

AWQ_DEVICE float activated(float x, int kind) {
  if (kind == OUTPUT_SILU) return x / (1.0f + expf(-x));
  constexpr float ROOT = 0.7978845608f;  // sqrt(2 / pi)
  return 0.5f * x * (1.0f + tanhf(ROOT * (x + 0.044715f * x * x * x)));
}

// sums: of row n of every weight, with bias
template <int TILES>
AWQ_DEVICE void store_output(const Output& out, int n, const float (&sums)[TILES]) {
  if (TILES == 2) {
    const float gate = activated(rounded(sums[0]), out.kind);
    static_cast<Bf16*>(out.y)[n] = Bf16(narrow(gate * rounded(sums[TILES - 1])));
  } else if (out.kind == OUTPUT_LOGITS) {
    static_cast<float*>(out.y)[n] = out.cap != 0.0f ? out.cap * tanhf(sums[0] / out.cap) : sums[0];
  } else {
    static_cast<Bf16*>(out.y)[n] = Bf16(narrow(sums[0]));
  }
}

}  // namespace awq
