// The decoder's operations that are sums of products of bf16 pairs. `Pairs` multiplies them: PairsByHalves, or what an
// instruction set brings.
#pragma once

#include "attention_bf16.h"
#include "dense.h"

namespace awq {
namespace {

template <class Pairs>
void use_pair_ops(Ops& ops) {
  ops.attend = attend<CacheOfPairs<Pairs>>;
  ops.dense = dense<Pairs, Bf16>;
  ops.dense_logits = dense<Pairs, float>;
}

}  // namespace
}  // namespace awq
