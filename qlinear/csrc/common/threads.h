// Parallel loops on the host's threads, or on our own where the host offers none.
#pragma once

#include <stdint.h>

#include "kernels.h"

namespace awq {

// Run body(begin, end, context) over [0, units) in pieces of at least `grain` units (the last may have fewer), on as
// many threads as the pool has. Which thread gets which piece is left open, so a result must not depend on it.
void for_range(int64_t units, int64_t grain, awq_range body, void* context);

// Threads that for_range may use.
int64_t num_threads();

}  // namespace awq
