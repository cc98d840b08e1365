// The block kernel, written once: a tile of weights, unpacked in registers, times 1 to 12 rows of activations.
//
// An instruction set brings a `Simd` type with its vector types and operations:
//   Vec, WIDTH            fp32 values of WIDTH tile rows
//   Acc                   the same, while a group is summed: fp32 or int32
//   vectors(rows)         accumulators side by side; they times WIDTH rows of the tile are one slice
//   ACCUMULATORS          how many may be live at once
//   COLUMNS               of a chunk, multiplied in one step: 2, a pair, or 4
//   Pair                  as many columns of weights, unpacked
//   Input, Sum            of one activation row: as many columns; what is kept of a group besides
//   Unpacker<BITS, MOST>  .pair<P>(codes, chunk): step P of a chunk, for WIDTH rows; called in order of P
//     Codes               what is kept from one step of a chunk to the next
//     SETS, set(P)        sums that steps are spread over, at most MOST, and which of them step P is added to
//     weigh(acc, s)       the sum of set s in units of set 0
//   multiply_add          acc + pair . input
//   BY_CHUNK              whether sums of a chunk are in fewer bits than a group's, to which `gather` adds them
//   load_zero<BITS>       zero points, relative to codes as the unpacker gives them
//   less_zero             acc - zero * sum(x), as fp32
//   TWO_STEPS             whether to prefetch in two steps, to L2 and then to L1
// The unpacked weights never reach memory. With 12 rows unpacking is about a tenth of the work, so the same kernel
// serves decode (1 row) and prefill (blocks of 12). What a row gives has the same bits whatever rows are beside it.
#pragma once

#include "rows.h"

namespace awq {
namespace {

// Bytes to prefetch ahead in the stream of codes; with only 4 to 6 KB decode is a tenth slower. Where one row takes so
// few instructions that memory could be the only limit, two steps, to L2 and then to L1, are worth another tenth.
constexpr int AHEAD = 10240, FAR_AHEAD = 16384, THEN_NEAR = 5120;

template <bool TWO_STEPS>
AWQ_INLINE void prefetch(const uint8_t* from, int bytes) {
  for (int line = 0; line < bytes; line += 64) {
    if (TWO_STEPS) {
      __builtin_prefetch(from + line + FAR_AHEAD, 0, 2);
      __builtin_prefetch(from + line + THEN_NEAR, 0, 3);
    } else {
      __builtin_prefetch(from + line + AHEAD, 0, 3);
    }
  }
}

// Where the code of an even column stands in the low half of a lane (layout.h) once its field is shifted by as little
// as leaves it at one of PLACES neighbouring places: bit place * BITS, with the code of the odd column 16 bits higher.
// So neighbouring fields share a shift, or need none. The pair that lies in no field is put together at the last place.
template <int BITS, int PLACES>
struct Places {
  static constexpr int FIELDS = 16 / BITS, IN_FIELDS = FIELDS * BITS;  // fields of a vector, pairs of a chunk in them
  static constexpr int place(int pair) { return pair < IN_FIELDS ? pair % FIELDS % PLACES : PLACES - 1; }
  static constexpr int shift(int pair) { return (pair % FIELDS - place(pair)) * BITS; }
};

// Sets that weigh the same, for sums of fp32: always as many, since the order of a sum is its bits.
template <int ALL>
struct EvenSets {
  static constexpr int SETS = ALL;
  static constexpr int set(int pair) { return pair % SETS; }
  template <class Acc>
  static AWQ_INLINE Acc weigh(Acc acc, int) { return acc; }
};

template <int N> struct Index { static constexpr int value = N; };
template <int... N> struct Sequence {};
using ChunkPairs = Sequence<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
template <int COLUMNS> struct StepsOf { using All = ChunkPairs; };
template <> struct StepsOf<4> { using All = Sequence<0, 1, 2, 3, 4, 5, 6, 7>; };
template <class Body, int... P>
AWQ_INLINE void for_each(Sequence<P...>, Body&& body) {
  (body(Index<P>{}), ...);
}

// Sums of one group for one slice of the tile.
template <class Simd, int SETS, int ROWS>
using Sums = typename Simd::Acc[SETS][ROWS][Simd::vectors(ROWS)];

// body(set, row, vector) for each of them.
template <class Simd, int SETS, int ROWS, class Body>
AWQ_INLINE void for_sums(Body&& body) {
  constexpr int VECTORS = Simd::vectors(ROWS);
#pragma GCC unroll 4
  for (int s = 0; s < SETS; ++s)
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) body(s, r, v);
}

template <class Simd, int SETS, int ROWS>
AWQ_INLINE void clear(Sums<Simd, SETS, ROWS>& acc) {
  for_sums<Simd, SETS, ROWS>([&](int s, int r, int v) __attribute__((always_inline)) {
    acc[s][r][v] = typename Simd::Acc{};
  });
}

template <class Simd, int SETS, int ROWS>
AWQ_INLINE void gather(const Sums<Simd, SETS, ROWS>& of_chunk, Sums<Simd, SETS, ROWS>& acc) {
  for_sums<Simd, SETS, ROWS>([&](int s, int r, int v) __attribute__((always_inline)) {
    acc[s][r][v] = Simd::gather(acc[s][r][v], of_chunk[s][r][v]);
  });
}

// Few rows leave too few independent sums to hide the latency of a multiply-add: pairs are spread over several sets.
template <class Simd, int BITS, int ROWS>
using UnpackerFor = typename Simd::template Unpacker<BITS, Simd::ACCUMULATORS / (ROWS * Simd::vectors(ROWS))>;

// y += scale * (acc - zero * sum), once a group
template <class Simd, int BITS, int ROWS, class Unpacker>
AWQ_INLINE void add_group(const uint8_t* record, int slice, const typename Simd::Sum* sums,
                          const Sums<Simd, Unpacker::SETS, ROWS>& acc, float* y) {
  constexpr int VECTORS = Simd::vectors(ROWS);
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const int row = slice + v * Simd::WIDTH;
    const typename Simd::Vec scale = Simd::load_bf16(record + 2 * row);
    const auto zero = Simd::template load_zero<BITS>(record + SCALE_BYTES + row);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      typename Simd::Acc total = acc[0][r][v];
#pragma GCC unroll 4
      for (int s = 1; s < Unpacker::SETS; ++s) total = Simd::add(total, Unpacker::weigh(acc[s][r][v], s));
      float* out = y + r * TILE + row;
      Simd::store(out, Simd::fma(scale, Simd::less_zero(total, zero, sums + r), Simd::load(out)));
    }
  }
}

// The pairs of a chunk stay in this function: in one of their own, gcc gives out registers so that 3 or 4 rows take a
// tenth longer.
template <class Simd, int BITS, int ROWS>
void block(const uint8_t* record, int64_t groups, int64_t group_size, const void* activations, const void* sums_in,
           float* y) {
  constexpr int VECTORS = Simd::vectors(ROWS), SLICE = Simd::WIDTH * VECTORS, STEPS = CHUNK / Simd::COLUMNS;
  using Unpacker = UnpackerFor<Simd, BITS, ROWS>;
  const Unpacker unpacker;
  const auto* x = static_cast<const typename Simd::Input*>(activations);
  const auto* sums = static_cast<const typename Simd::Sum*>(sums_in);

  for (int64_t g = 0; g < groups; ++g, x += group_size / Simd::COLUMNS * ROWS, sums += ROWS) {
    const uint8_t* codes = record + HEADER_BYTES;
    prefetch<Simd::TWO_STEPS>(record, HEADER_BYTES);
    for (int slice = 0; slice < TILE; slice += SLICE) {
      Sums<Simd, Unpacker::SETS, ROWS> acc;
      clear<Simd, Unpacker::SETS, ROWS>(acc);
      for (int64_t c = 0; c < group_size / CHUNK; ++c) {
        Sums<Simd, Unpacker::SETS, ROWS> of_chunk;
        if constexpr (Simd::BY_CHUNK) clear<Simd, Unpacker::SETS, ROWS>(of_chunk);
        auto& into = Simd::BY_CHUNK ? of_chunk : acc;
        const uint8_t* chunk = codes + c * chunk_bytes(BITS);
        const auto* inputs = x + c * STEPS * ROWS;
        if (slice == 0) prefetch<Simd::TWO_STEPS>(chunk, int(chunk_bytes(BITS)));
        typename Unpacker::Codes state[VECTORS];
        for_each(typename StepsOf<Simd::COLUMNS>::All{}, [&](auto p) __attribute__((always_inline)) {
          constexpr int P = decltype(p)::value, S = Unpacker::set(P);
          typename Simd::Pair weights[VECTORS];
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; ++v) {
            const int row = slice + v * Simd::WIDTH;
            weights[v] = unpacker.template pair<P>(state[v], chunk + row / HALF_TILE * BITS * 64 + row % HALF_TILE * 4);
          }
#pragma GCC unroll 12
          for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
              into[S][r][v] = Simd::multiply_add(into[S][r][v], weights[v], inputs + P * ROWS + r);
        });
        if constexpr (Simd::BY_CHUNK) gather<Simd, Unpacker::SETS, ROWS>(of_chunk, acc);
      }
      add_group<Simd, BITS, ROWS, Unpacker>(record, slice, sums, acc, y);
    }
    record = codes + group_size / CHUNK * chunk_bytes(BITS);
  }
}

template <class Simd, int BITS, int ROWS>
void set_blocks_to(Route& route) {
  if constexpr (ROWS > 0) {
    route.block[BITS - 3][ROWS] = block<Simd, BITS, ROWS>;
    set_blocks_to<Simd, BITS, ROWS - 1>(route);
  }
}

template <class Simd>
void set_blocks(Route& route) {
  set_blocks_to<Simd, 3, Simd::ROWS>(route);
  set_blocks_to<Simd, 4, Simd::ROWS>(route);
}

}  // namespace
}  // namespace awq
