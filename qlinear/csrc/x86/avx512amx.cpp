// AMX: tiles of 16 rows times 64 bytes. tdpbf16ps multiplies pairs of bf16 exactly and adds in fp32, tdpbsud four columns
// of int8 in int32: sixteen activation rows by sixteen rows of weights in one instruction.
//
// Codes are unpacked as for AVX-512, a vector for sixteen rows of weights and a pair or four columns, which is one row
// of a tile; so a step's tiles are written to L1 and loaded from there. What a row of activations gives has the same
// bits whatever rows are beside it: products of bf16 take this way from one row up, and integers are exact on any.
#include <x86intrin.h>

#include "avx512int8.h"
#include "avx512vnni.h"
#include "isas.h"

namespace awq {

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)

namespace {

constexpr int TILE_ROWS = 16, TILE_BYTES = 64;
constexpr int MOST_TILE_ROWS = 2 * TILE_ROWS;  // of activations in a block
static_assert(MOST_TILE_ROWS <= MAX_ROWS && TILE == 2 * TILE_ROWS, "sums are two by two tiles");

// The tiles, which intrinsics take as literals only. Sums of the first sixteen activation rows and both halves of the
// weights, and of those beyond sixteen: 0 and 1, 2 and 3. Activations: 4, and beyond sixteen 5. The weights' halves: 6, 7.

// What ldtilecfg reads.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // first, second: activation rows of either tile; bytes: of a step's columns
  Shapes(int first, int second, int bytes) {
    set(0, first, TILE_BYTES);
    set(1, first, TILE_BYTES);
    set(4, first, bytes);
    if (second > 0) {
      set(2, second, TILE_BYTES);
      set(3, second, TILE_BYTES);
      set(5, second, bytes);
    }
    set(6, bytes / 4, TILE_BYTES);
    set(7, bytes / 4, TILE_BYTES);
  }
  void set(int tile, int tile_rows, int bytes) {
    rows[tile] = uint8_t(tile_rows);
    row_bytes[tile] = uint16_t(bytes);
  }
};

// What the compiler does not know of tiles: that they read and write memory.
AWQ_INLINE void memory_is_used() { asm volatile("" ::: "memory"); }

struct Bf16Tiles {
  using Simd = Avx512Float;
  using Element = Bf16;
  static constexpr int STEP_COLUMNS = 32, VECTOR_COLUMNS = 2;
  template <int BITS> using Unpacker = Avx512Values<BITS>;
  static AWQ_INLINE __m512 load(const uint32_t* sums) { return _mm512_load_ps(sums); }
  static AWQ_INLINE void multiply_first() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  static AWQ_INLINE void multiply_second() {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
};

struct Int8Tiles {
  using Simd = Avx512Int8<FourAtOnce>;
  using Element = int8_t;
  static constexpr int STEP_COLUMNS = 64, VECTOR_COLUMNS = 4;
  template <int BITS> using Unpacker = Simd::Unpacker<BITS, 1>;
  static AWQ_INLINE __m512i load(const uint32_t* sums) { return _mm512_load_si512(sums); }
  static AWQ_INLINE void multiply_first() {  // signed by unsigned
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
  }
  static AWQ_INLINE void multiply_second() {
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
};

// The codes of a chunk as rows of the tiles of its halves.
template <class Tiles, int BITS>
AWQ_INLINE void unpack(const typename Tiles::template Unpacker<BITS>& unpacker, const uint8_t* chunk, uint8_t* first,
                       uint8_t* second) {
  typename Tiles::template Unpacker<BITS>::Codes of_first, of_second;
  for_each(typename StepsOf<Tiles::VECTOR_COLUMNS>::All{}, [&](auto p) __attribute__((always_inline)) {
    constexpr int P = decltype(p)::value;
    _mm512_store_si512(first + TILE_BYTES * P, unpacker.template pair<P>(of_first, chunk));
    _mm512_store_si512(second + TILE_BYTES * P, unpacker.template pair<P>(of_second, chunk + BITS * 64));
  });
}

template <bool MORE>
AWQ_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if (MORE) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

// acc: (rows, 32)
template <bool MORE>
AWQ_INLINE void keep_sums(uint32_t* acc) {
  constexpr int64_t STRIDE = TILE * sizeof *acc;
  _tile_stored(0, acc, STRIDE);
  _tile_stored(1, acc + TILE_ROWS, STRIDE);
  if (MORE) {
    _tile_stored(2, acc + TILE_ROWS * TILE, STRIDE);
    _tile_stored(3, acc + TILE_ROWS * TILE + TILE_ROWS, STRIDE);
  }
  memory_is_used();
}

// y += scale * (sums - zero * sum(x)), once a group
template <class Tiles, int BITS>
AWQ_INLINE void add_sums(const uint8_t* record, const typename Tiles::Simd::Sum* sums, const uint32_t* acc, int rows,
                         float* y) {
  using Simd = typename Tiles::Simd;
  const auto scale_0 = Simd::load_bf16(record), scale_1 = Simd::load_bf16(record + 2 * TILE_ROWS);
  const auto zero_0 = Simd::template load_zero<BITS>(record + SCALE_BYTES);
  const auto zero_1 = Simd::template load_zero<BITS>(record + SCALE_BYTES + TILE_ROWS);
  for (int r = 0; r < rows; ++r, y += TILE, acc += TILE) {
    Simd::store(y, Simd::fma(scale_0, Simd::less_zero(Tiles::load(acc), zero_0, sums + r), Simd::load(y)));
    float* next = y + TILE_ROWS;
    Simd::store(next, Simd::fma(scale_1, Simd::less_zero(Tiles::load(acc + TILE_ROWS), zero_1, sums + r), Simd::load(next)));
  }
}

// One tile of weights times `rows` activation rows, which lie (groups, rows, group_size). MORE: than sixteen.
template <class Tiles, int BITS, bool MORE>
void multiply(const uint8_t* record, int64_t groups, int64_t group_size, const void* activations, const void* sums_in,
              float* y, int rows) {
  using Element = typename Tiles::Element;
  const typename Tiles::template Unpacker<BITS> unpacker{};
  const auto* x = static_cast<const Element*>(activations);
  const auto* sums = static_cast<const typename Tiles::Simd::Sum*>(sums_in);
  const int64_t step = group_size < Tiles::STEP_COLUMNS ? group_size : Tiles::STEP_COLUMNS;
  const int64_t stride = group_size * int64_t(sizeof(Element));
  alignas(64) uint8_t halves[2][2][TILE_ROWS * TILE_BYTES];  // of this step and of the one before, which is still read
  alignas(64) uint32_t acc[MOST_TILE_ROWS * TILE];
  const Shapes shapes(MORE ? TILE_ROWS : rows, MORE ? rows - TILE_ROWS : 0, int(step * int64_t(sizeof(Element))));
  memory_is_used();  // gcc's intrinsic says that it reads eight bytes
  _tile_loadconfig(&shapes);
  int turn = 0;
  for (int64_t g = 0; g < groups; ++g, x += rows * group_size, sums += rows) {
    prefetch<false>(record, HEADER_BYTES);
    clear_sums<MORE>();
    const uint8_t* chunk = record + HEADER_BYTES;
    for (int64_t column = 0; column < group_size; column += step, turn ^= 1) {
      auto& half = halves[turn];
      for (int64_t at = 0; at < step; at += CHUNK, chunk += chunk_bytes(BITS)) {
        prefetch<false>(chunk, int(chunk_bytes(BITS)));
        const int64_t from = at / Tiles::VECTOR_COLUMNS * TILE_BYTES;
        unpack<Tiles, BITS>(unpacker, chunk, half[0] + from, half[1] + from);
      }
      memory_is_used();
      _tile_loadd(4, x + column, stride);
      _tile_loadd(6, half[0], TILE_BYTES);
      _tile_loadd(7, half[1], TILE_BYTES);
      Tiles::multiply_first();
      if (MORE) {
        _tile_loadd(5, x + TILE_ROWS * group_size + column, stride);
        Tiles::multiply_second();
      }
      memory_is_used();
    }
    keep_sums<MORE>(acc);
    add_sums<Tiles, BITS>(record, sums, acc, rows, y);
    record = chunk;
  }
  _tile_release();  // or the kernel keeps them for this thread from now on
}

template <class Tiles, int BITS, int ROWS>
void tile_block(const uint8_t* record, int64_t groups, int64_t group_size, const void* x, const void* sums, float* y) {
  multiply<Tiles, BITS, (ROWS > TILE_ROWS)>(record, groups, group_size, x, sums, y, ROWS);
}

// From `LEAST` rows up.
template <class Tiles, int BITS, int LEAST, int ROWS = MOST_TILE_ROWS>
void set_blocks_from(Route& route) {
  if constexpr (ROWS >= LEAST) {
    route.block[BITS - 3][ROWS] = tile_block<Tiles, BITS, ROWS>;
    set_blocks_from<Tiles, BITS, LEAST, ROWS - 1>(route);
  }
}

// Rows as they come, group by group.
void lay_out_rows(const InputRows& in, void* out, void* sums_out) {
  const Bf16* group = static_cast<const Bf16*>(in.x);
  Bf16* to = static_cast<Bf16*>(out);
  float* sums = static_cast<float*>(sums_out);
  for (int64_t g = 0; g < in.k / in.group_size; ++g, group += in.group_size) {
    for (int64_t r = 0; r < in.rows; ++r, to += in.group_size) {
      memcpy(to, group + r * in.stride, size_t(in.group_size) * sizeof *to);
      *sums++ = sum(to, in.group_size);
    }
  }
}

// Few rows as the kernels of fewer take them.
void lay_out_int8_rows(const InputRows& in, void* out, void* sums_out) {
  if (in.rows <= Int8Tiles::Simd::ROWS) return lay_out_int8<16>(in, out, sums_out);
  const Bf16* group = static_cast<const Bf16*>(in.x);
  int8_t* to = static_cast<int8_t*>(out);
  Int8Sum* sums = static_cast<Int8Sum*>(sums_out);
  for (int64_t g = 0; g < in.k / in.group_size; ++g, group += in.group_size) {
    for (int64_t r = 0; r < in.rows; ++r, to += in.group_size) {
      *sums++ = to_integers<Sixteen>(group + r * in.stride, in.group_size, to, [](auto x) { return to_quads(x); });
    }
  }
}

void use(Ops& ops) {
  set_blocks_from<Bf16Tiles, 3, 1>(ops.linear_bf16);
  set_blocks_from<Bf16Tiles, 4, 1>(ops.linear_bf16);
  set_rows<Bf16, Bf16>(ops.linear_bf16, MOST_TILE_ROWS);
  ops.linear_bf16.lay_out = lay_out_rows;
  set_blocks_from<Int8Tiles, 3, Int8Tiles::Simd::ROWS + 1>(ops.linear_int8);
  set_blocks_from<Int8Tiles, 4, Int8Tiles::Simd::ROWS + 1>(ops.linear_int8);
  set_int8_rows<16>(ops.linear_int8, MOST_TILE_ROWS);
  ops.linear_int8.lay_out = lay_out_int8_rows;
}

// Ticks of the time-stamp counter that a block of so many rows takes with weights and activations in L1 or L2.
uint64_t ticks(const Route& route, int64_t rows) {
  constexpr int BITS = 4, GROUPS = 4, GROUP_SIZE = 64, REPEATS = 24;  // the least of all: an interrupt spoils but a few
  static const uint8_t records[GROUPS * record_bytes(BITS, GROUP_SIZE)] = {};
  static const uint8_t x[MAX_ROWS * GROUPS * GROUP_SIZE * sizeof(Bf16)] = {}, sums[MAX_ROWS * GROUPS * sizeof(Int8Sum)] = {};
  float y[MAX_ROWS * TILE] = {};
  uint64_t least = UINT64_MAX;
  for (int repeat = 0; repeat < REPEATS; ++repeat) {
    const uint64_t start = __rdtsc();
    route.block[BITS - 3][rows](records, GROUPS, GROUP_SIZE, x, sums, y);
    const uint64_t taken = __rdtsc() - start;
    least = taken < least ? taken : least;
  }
  return least;
}

bool is_fast() {
  Ops pairs{}, tiles{};
  use_avx512vnni(pairs);
  use_avx512vnni(tiles);
  use(tiles);
  const Route &by_pairs = pairs.linear_bf16, &by_tiles = tiles.linear_bf16;
  // One row waits for memory most of the time, so that it may take up to twice as long here.
  return ticks(by_tiles, 1) < 2 * ticks(by_pairs, 1) &&
         ticks(by_tiles, by_tiles.rows) * by_pairs.rows < ticks(by_pairs, by_pairs.rows) * by_tiles.rows;
}

}  // namespace

void (*const use_amx)(Ops& ops) = use;
bool (*const tiles_are_fast)() = is_fast;

#else

void (*const use_amx)(Ops& ops) = nullptr;  // the compiler does not know the instructions
bool (*const tiles_are_fast)() = nullptr;

#endif

}  // namespace awq
