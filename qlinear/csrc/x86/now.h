// Sums of integers that are there when they are asked for.
#pragma once

#include "../common/lanes.h"

namespace awq {
namespace {

// Keeps the compiler from putting an addition off: gcc does with those of integers, and the products that it keeps until
// then take many more registers than there are.
template <class Vector>
AWQ_INLINE Vector now(Vector sum) {
  asm("" : "+v"(sum));
  return sum;
}

}  // namespace
}  // namespace awq
