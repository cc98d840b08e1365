// Sixteen lanes side by side, in the compiler's own vector types: each instruction set compiles the same text with its
// own flags. Everything in this header and in those that include it is in an anonymous namespace, and nothing comes
// from the standard library's templates: the linker must never merge a copy compiled for a newer processor into code
// that runs on an older one.
#pragma once

#include <stdint.h>
#include <string.h>

#define AWQ_INLINE __attribute__((always_inline)) inline

namespace awq {
namespace {

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));

using Bf16 = uint16_t;  // the bits of a bf16 value

AWQ_INLINE Floats splat(float value) { return Floats{} + value; }
// Of two that do not compare, the second: a NaN stays one where what it is compared with comes first.
template <class Vector>
AWQ_INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }
template <class Vector>
AWQ_INLINE Vector smaller(Vector a, Vector b) { return a < b ? a : b; }

inline float widen(Bf16 bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}
AWQ_INLINE Floats widen(Halves bits) { return (Floats)(__builtin_convertvector(bits, Words) << 16); }

// The bits of a float, or of sixteen, to those of bf16: rounded to nearest, ties to even; a NaN stays one.
template <class Word>
AWQ_INLINE Word round_to_bf16(Word word) {
  const Word rounded = word + 0x7fff + (word >> 16 & 1);
  const Word chosen = (word & 0x7fffffffu) > 0x7f800000u ? word | 0x400000u : rounded;
  return chosen >> 16;  // apart from the choice, or gcc shifts both
}

inline Bf16 narrow(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  return Bf16(round_to_bf16(word));
}

// Vectors of so many lanes. One that is wider than a register is kept in memory by the compiler, so loops are written for
// registers.
template <int WIDTH>
struct Register {
  static constexpr int LANES = WIDTH;
  typedef float Floats __attribute__((vector_size(4 * WIDTH)));
  typedef uint32_t Words __attribute__((vector_size(4 * WIDTH)));
  typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
  typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
  typedef int16_t Shorts __attribute__((vector_size(2 * WIDTH)));
  typedef int8_t Bytes __attribute__((vector_size(WIDTH)));
};
using Sixteen = Register<LANES>;
using Four = Register<4>;

// The first `count` lanes (all where it is as many or more, none where it is below 1); the others are 0, or stay as they
// are in memory.
template <class In = Sixteen>
AWQ_INLINE typename In::Floats load(const float* from, int64_t count = In::LANES) {
  typename In::Floats value{};
  if (count >= In::LANES) memcpy(&value, from, sizeof value);
  else if (count > 0) memcpy(&value, from, size_t(count) * sizeof *from);
  return value;
}
template <class In = Sixteen>
AWQ_INLINE typename In::Floats load(const Bf16* from, int64_t count = In::LANES) {
  typename In::Halves bits{};
  if (count >= In::LANES) memcpy(&bits, from, sizeof bits);
  else if (count > 0) memcpy(&bits, from, size_t(count) * sizeof *from);
  return (typename In::Floats)(__builtin_convertvector(bits, typename In::Words) << 16);
}
template <class In = Sixteen>
AWQ_INLINE void store(typename In::Floats value, float* to, int64_t count = In::LANES) {
  if (count >= In::LANES) memcpy(to, &value, sizeof value);
  else if (count > 0) memcpy(to, &value, size_t(count) * sizeof *to);
}
template <class In = Sixteen>
AWQ_INLINE void store(typename In::Floats value, Bf16* to, int64_t count = In::LANES) {
  const auto bits = __builtin_convertvector(round_to_bf16((typename In::Words)value), typename In::Halves);
  if (count >= In::LANES) memcpy(to, &bits, sizeof bits);
  else if (count > 0) memcpy(to, &bits, size_t(count) * sizeof *to);
}

// Sixteen lanes of what was kept in registers of some. Copied one by one: an array that is copied as a whole is kept in
// memory all along.
template <int PARTS, class Part>
AWQ_INLINE Floats whole(const Part (&parts)[PARTS]) {
  static_assert(PARTS * sizeof(Part) == sizeof(Floats));
  Floats value;
#pragma GCC unroll 4
  for (int p = 0; p < PARTS; ++p) memcpy(reinterpret_cast<char*>(&value) + p * sizeof(Part), &parts[p], sizeof(Part));
  return value;
}

// Over the lanes, as a tree: a fixed order.
AWQ_INLINE float total(Floats value) {
  float lane[LANES];
  memcpy(lane, &value, sizeof lane);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}
AWQ_INLINE float largest(Floats value) {
  float lane[LANES];
  memcpy(lane, &value, sizeof lane);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

struct Adds {
  template <class Vector>
  static AWQ_INLINE Vector join(Vector a, Vector b) { return a + b; }
};
struct Larger {
  template <class Vector>
  static AWQ_INLINE Vector join(Vector a, Vector b) { return larger(a, b); }
};

// The lanes of a vector in another order.
#if defined(__clang__) || __GNUC__ >= 12
#define AWQ_PLACED(Vector, value, ...) __builtin_shufflevector(value, value, __VA_ARGS__)
#else
#define AWQ_PLACED(Vector, value, ...) __builtin_shuffle(value, Vector{__VA_ARGS__})
#endif

// Lanes A and B of p, then of q.
template <int A, int B>
AWQ_INLINE Four::Floats pick(Four::Floats p, Four::Floats q) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(p, q, A, B, A + 4, B + 4);
#else
  return __builtin_shuffle(p, q, Four::Ints{A, B, A + 4, B + 4});
#endif
}

// A lane each: what the lanes of four times sixteen floats are joined to, in the order of `total`.
template <class Join>
AWQ_INLINE Four::Floats four_joined(const void* values) {
  Four::Floats four[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Four::Floats part[4];
    memcpy(part, static_cast<const char*>(values) + i * sizeof part, sizeof part);
    four[i] = Join::join(Join::join(part[0], part[2]), Join::join(part[1], part[3]));
  }
  const Four::Floats first = Join::join(pick<0, 1>(four[0], four[1]), pick<2, 3>(four[0], four[1]));
  const Four::Floats second = Join::join(pick<0, 1>(four[2], four[3]), pick<2, 3>(four[2], four[3]));
  return Join::join(pick<0, 2>(first, second), pick<1, 3>(first, second));
}

// p and q, folded in halves: lanes `width` apart in blocks of twice that are joined; those of p first, then of q.
template <int WIDTH, class Join>
AWQ_INLINE Floats fold(Floats p, Floats q) {
  constexpr auto at = [](int i) { return i % 8 / WIDTH * 2 * WIDTH + i % WIDTH + i / 8 * LANES; };
#if defined(__clang__) || __GNUC__ >= 12
#define AWQ_PICK(by)                                                                                              \
  __builtin_shufflevector(p, q, at(0) + by, at(1) + by, at(2) + by, at(3) + by, at(4) + by, at(5) + by, at(6) + by, \
                          at(7) + by, at(8) + by, at(9) + by, at(10) + by, at(11) + by, at(12) + by, at(13) + by,  \
                          at(14) + by, at(15) + by)
#else
#define AWQ_PICK(by)                                                                                                \
  __builtin_shuffle(p, q, Ints{at(0) + by, at(1) + by, at(2) + by, at(3) + by, at(4) + by, at(5) + by, at(6) + by,  \
                               at(7) + by, at(8) + by, at(9) + by, at(10) + by, at(11) + by, at(12) + by,           \
                               at(13) + by, at(14) + by, at(15) + by})
#endif
  return Join::join(AWQ_PICK(0), AWQ_PICK(WIDTH));
#undef AWQ_PICK
}

// A lane each: what the lanes of sixteen vectors are joined to, in the order of `total`. WIDTH: lanes of a register.
template <class Join, int WIDTH>
AWQ_INLINE Floats joined(const Floats* values) {
  if constexpr (WIDTH == LANES) {
    Floats eight[8], four[4], two[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) eight[i] = fold<8, Join>(values[2 * i], values[2 * i + 1]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) four[i] = fold<4, Join>(eight[2 * i], eight[2 * i + 1]);
    for (int i = 0; i < 2; ++i) two[i] = fold<2, Join>(four[2 * i], four[2 * i + 1]);
    return fold<1, Join>(two[0], two[1]);
  }
  Four::Floats fours[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) fours[i] = four_joined<Join>(values + 4 * i);
  Floats whole;
  memcpy(&whole, fours, sizeof whole);
  return whole;
}

// A lane each: `total` of sixteen vectors, with the same bits.
template <int WIDTH>
AWQ_INLINE Floats totals(const Floats* values) { return joined<Adds, WIDTH>(values); }

// e^x to 2 ulp: 2^n times the Taylor series on [-ln2/2, ln2/2]. Exactly 0 below the smallest normal number; of a NaN, a
// NaN.
template <class Vector>
AWQ_INLINE Vector exponential(Vector x) {
  using Whole = decltype(x < x);
  constexpr float LOWEST = -87.33f, HIGHEST = 88.37f, ROUND = 12582912.0f;  // 1.5 * 2^23: the sum has no fraction
  const Vector lowest = Vector{} + LOWEST, bounded = smaller(Vector{} + HIGHEST, larger(lowest, x));
  const Vector n = (bounded * 1.44269504f + ROUND) - ROUND;
  const Vector r = (bounded - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts, the first short
  Vector p = Vector{} + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Whole exponent = (__builtin_convertvector(n, Whole) + 127) << 23;
  return x < lowest ? Vector{} : p * (Vector)exponent;
}

// 2^x for x up to 1, or NaN, to 2 ulp: 2^n times a polynomial on [-1/2, 1/2] whose coefficients make its largest relative
// error there the least, 8e-8. Exactly 0 below the smallest normal number.
template <class Vector>
AWQ_INLINE Vector exp2_up_to_1(Vector x) {
  using Whole = decltype(x < x);
  constexpr float LOWEST = -126.0f, ROUND = 12582912.0f;  // 1.5 * 2^23: the sum has no fraction
  const Vector lowest = Vector{} + LOWEST, bounded = larger(lowest, x);
  const Vector shifted = bounded + ROUND, r = bounded - (shifted - ROUND);
  Vector p = Vector{} + 0.00132764717f;
  p = p * r + 0.00967554154f;
  p = p * r + 0.0555071328f;
  p = p * r + 0.240221197f;
  p = p * r + 0.693146967f;
  p = p * r + 1.0f;
  return x < lowest ? Vector{} : (Vector)((Whole)p + ((Whole)shifted << 23));
}

template <class Vector>
AWQ_INLINE Vector hyperbolic_tangent(Vector x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// Of `most` vectors side by side, as many as leave the sums of some rows in registers.
constexpr int beside(int rows, int sums, int most) {
  return sums / rows < 1 ? 1 : sums / rows < most ? sums / rows : most;
}

// acc + a . b for pairs of bf16, each product exact, summed in fp32; and what makes bf16 of fp32. An instruction
// set may bring its own.
// ROWS: query rows side by side; SUMS: sums of sixteen lanes that there are registers for; WIDTH: lanes of a register;
// Same: as what a value is kept that is the same in all lanes, here as float, for no row to take its pairs apart anew;
// joined: two values of each lane as the pair that `multiply_add` takes, here apart as they are.
template <int AT_ONCE, int MOST_SUMS, int REGISTER>
struct PairsByHalves {
  static constexpr int ROWS = AT_ONCE, SUMS = MOST_SUMS, WIDTH = REGISTER;
  using Same = float;
  using In = Register<WIDTH>;
  template <class Vector>
  struct Apart {
    Vector even, odd;
  };
  template <class Vector>
  static AWQ_INLINE Apart<Vector> joined(Vector even, Vector odd) { return {even, odd}; }
  template <class Vector, class Pairs>
  static AWQ_INLINE Vector multiply_add(Vector acc, Pairs a, const Apart<Vector>& b) {
    acc = acc + (Vector)(a << 16) * b.even;
    return acc + (Vector)(a & 0xffff0000u) * b.odd;
  }
  template <class Vector, class Pairs>
  static AWQ_INLINE Vector multiply_add(Vector acc, Pairs a, Pairs b) {
    acc = acc + (Vector)(a << 16) * (Vector)(b << 16);
    return acc + (Vector)(a & 0xffff0000u) * (Vector)(b & 0xffff0000u);
  }
  template <class Vector, class Pairs>
  static AWQ_INLINE Vector multiply_add(Vector acc, Pairs a, const float* same) {
    acc = acc + (Vector)(a << 16) * same[0];
    return acc + (Vector)(a & 0xffff0000u) * same[1];
  }
  // Round to bf16 and keep that; what is kept.
  static AWQ_INLINE typename In::Floats keep(typename In::Floats value, float* to) {
    value = (typename In::Floats)(round_to_bf16((typename In::Words)value) << 16);
    memcpy(to, &value, sizeof value);
    return value;
  }
};

}  // namespace
}  // namespace awq
