// What the rest needs from the folder of a processor (x86/, ...).
#pragma once

#include <stdint.h>

#include "ops.h"

namespace awq {

struct Isa {
  const char* name;
  bool is_there;          // the processor and the operating system have it, and the compiler knows it
  bool (*is_fast)();      // whether to take it unasked; null: always. Called only where it is there.
  void (*use)(Ops& ops);  // overrides entries of what the instruction sets before it filled in
};

struct Isas {
  const Isa* first;
  int64_t count;
};

// The processor's instruction sets, the lowest first: that is "scalar", which is always there and fills in every entry.
Isas isas();

// Tell the processor that this thread waits for another: for the body of a loop that waits.
void pause();

}  // namespace awq
