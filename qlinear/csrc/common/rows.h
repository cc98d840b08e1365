// Activation rows in and out of the block kernels.
#pragma once

#include "lanes.h"
#include "layout.h"
#include "ops.h"

namespace awq {
namespace {

// Sixteen activations, and two: as they are, or widened.
template <class Value>
AWQ_INLINE void copy_lanes(const Value* from, Value* to) {
  memcpy(to, from, LANES * sizeof *to);
}
AWQ_INLINE void copy_lanes(const Bf16* from, float* to) { store(load(from, LANES), to, LANES); }

template <class Value>
AWQ_INLINE void copy_pair(const Value* from, Value* to) {
  memcpy(to, from, 2 * sizeof *to);
}
AWQ_INLINE void copy_pair(const Bf16* from, float* to) {
  to[0] = widen(from[0]);
  to[1] = widen(from[1]);
}

// Sixteen partial sums, then a tree: an order that does not depend on the instruction set.
template <class In>
float sum(const In* x, int64_t count) {
  Floats partial = {};
  for (int64_t i = 0; i < count; i += LANES) partial += load(x + i, LANES);
  float part[LANES];
  memcpy(part, &partial, sizeof part);
  float quarter[4];
  for (int i = 0; i < 4; ++i) quarter[i] = (part[i] + part[i + 4]) + (part[i + 8] + part[i + 12]);
  return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
}

// The largest |x|, as the bits of a bf16 value. 0x7f80 and above: one is infinite or NaN.
inline uint16_t largest_bits(const Bf16* x, int64_t count) {
  Shorts most = {};
  for (int64_t i = 0; i < count; i += LANES) {
    Shorts bits;
    memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fff;
    most = bits > most ? bits : most;
  }
  int16_t lane[LANES];
  memcpy(lane, &most, sizeof lane);
  int16_t largest = 0;
  for (const int16_t bits : lane) largest = bits > largest ? bits : largest;
  return uint16_t(largest);
}

// Group by group, so that what is written stays in L1 while the rows take their turns.
template <class In, class Laid>
void lay_out(const InputRows& in, void* out, void* sums_out) {
  const int64_t rows = in.rows, group_size = in.group_size;
  const In* group = static_cast<const In*>(in.x);
  Laid* pairs = static_cast<Laid*>(out);
  float* sums = static_cast<float*>(sums_out);
  for (int64_t g = 0; g < in.k / group_size; ++g, group += group_size, pairs += group_size * rows, sums += rows) {
    if (rows == 1) {
      for (int64_t i = 0; i < group_size; i += LANES) copy_lanes(group + i, pairs + i);
      sums[0] = sum(group, group_size);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      // (k) -> (k / 2, rows, 2): pairs of this row, `rows` pairs apart
      const In* row = group + r * in.stride;
      for (int64_t p = 0; p < group_size / 2; ++p) copy_pair(row + 2 * p, pairs + 2 * (p * rows + r));
      sums[r] = sum(row, group_size);
    }
  }
}

inline void store_one(float value, float& to) { to = value; }
inline void store_one(float value, Bf16& to) { to = narrow(value); }

// One by one: what the compiler makes of this loop on AVX2 is faster than sixteen lanes at a time.
template <class Out>
void store_rows(const float* y, int64_t rows, int64_t columns, void* out, int64_t stride) {
  Out* row = static_cast<Out*>(out);
  for (int64_t r = 0; r < rows; ++r, y += TILE, row += stride) {
    if (columns >= TILE) {
      for (int c = 0; c < TILE; ++c) store_one(y[c], row[c]);
    } else {
      for (int64_t c = 0; c < columns; ++c) store_one(y[c], row[c]);
    }
  }
}

template <class In, class Laid>
void set_rows(Route& route, int64_t rows) {
  route.rows = rows;
  route.in_bytes = route.out_bytes = sizeof(In);
  route.element_bytes = sizeof(Laid);
  route.sum_bytes = sizeof(float);
  route.lay_out = lay_out<In, Laid>;
  route.store_rows = store_rows<In>;
}

}  // namespace
}  // namespace awq
