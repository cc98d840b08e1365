// Every piece, compiled for the instruction set of the file that includes this.
#pragma once

#include "attention.h"
#include "dense.h"
#include "rowwise.h"

namespace awq {
namespace {

template <class Pairs>
constexpr Pieces pieces_with() {
  return {norm, add, embed, head, gate, attend<Pairs>, merge, scale, dense<Pairs, uint16_t>, dense<Pairs, float>, cap,
          log_sum_exp};
}

}  // namespace
}  // namespace awq
