// awq_linear in steps, for C++ code that has its own parallel region, as the decoder does.
//
// Lay the activations out once, then let each thread multiply a range of units; units are independent, and what one
// computes does not depend on the thread that computes it. With up to `Route::rows` activation rows a unit is one tile,
// and there are tiles_of(n) units.
#pragma once

#include <stdint.h>

#include "kernels.h"
#include "ops.h"

namespace awq {

// Activations as the kernels read them. `sums` and `x` lie in one buffer of activation_bytes() bytes, the caller's.
struct Activations {
  const Route* route;
  int64_t rows, k, group_size;
  uint8_t* sums;  // block by block (groups, rows of the block)
  uint8_t* x;     // block by block, as the route lays it out (ops.h)

  int64_t blocks() const { return (rows + route->rows - 1) / route->rows; }
  int64_t first_row(int64_t block) const { return rows * block / blocks(); }  // blocks differ by one row at most
};

int64_t activation_bytes(const Route& route, int64_t rows, int64_t k, int64_t group_size);
Activations activations_in(void* buffer, const Route& route, int64_t rows, int64_t k, int64_t group_size);

// Lay out the blocks [begin, end) of x: (rows, k), `stride` elements from row to row.
void lay_out_blocks(const Activations& activations, const void* x, int64_t stride, int64_t begin, int64_t end);

// Units of work in y = activations @ weight.T + bias, and the computing of the units [begin, end). y: (rows, n),
// `stride` elements from row to row, of the activations' type.
int64_t unit_count(const awq_weight& weight, const Activations& activations);
void multiply_units(const awq_weight& weight, const Activations& activations, void* y, int64_t stride, int64_t begin,
                    int64_t end);

}  // namespace awq
