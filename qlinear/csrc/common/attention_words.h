// Fours of bytes of a cache of int8 as words of 16 bits, bytes 0 and 2 and then 1 and 3, where an instruction multiplies pairs
// of those: `Pairs` adds both products of each lane. What all lanes share is kept as words, too, and a weight, of 16 bits
// without a sign, as the word 32768 below it, whose products
//   |weight - 32768| * 128 * 128 positions <= 2^29
// are made good by 32768 times the sum of the values, at most 2^14 of a lane.
#pragma once

#include "attention_int8.h"

namespace awq {
namespace {

template <class Pairs>
struct FoursAsWords {
  static constexpr int ROWS = Pairs::ROWS, SUMS = Pairs::SUMS, WIDTH = Pairs::WIDTH;
  static constexpr int VALUE_ROWS = 4, OF_ROW = 1;
  static constexpr int64_t QUAD = 4;
  static constexpr int32_t BELOW = 32768;
  using Integer = int16_t;
  using In = Register<WIDTH>;
  using Ints = typename In::Ints;
  typedef int16_t Signed __attribute__((vector_size(4 * WIDTH)));
  typedef uint16_t Unsigned __attribute__((vector_size(4 * WIDTH)));

  static AWQ_INLINE void keep_query(const int8_t* q, int64_t width, Integer* to) {
    for (int64_t i = 0; i < width; i += WIDTH) {
      typename In::Bytes integers;
      memcpy(&integers, q + i, sizeof integers);
      const auto words = in_pairs(__builtin_convertvector(integers, typename In::Shorts));
      memcpy(to + i, &words, sizeof words);
    }
  }

  static AWQ_INLINE void keep_weights(const float* products, int64_t positions, float steps, uint8_t* row) {
    for (int64_t i = 0; i < positions; i += WIDTH) {
      const auto integers = (Ints)to_weights<In>(products + i, steps) - BELOW;
      const auto words = in_pairs(__builtin_convertvector(integers, typename In::Shorts));
      memcpy(row + i * int64_t(sizeof(Integer)), &words, sizeof words);
    }
  }

  // scores (AT_ONCE, CACHE_STEP) of some tiles: a lane a position
  template <int AT_ONCE, int TILES>
  static void score(const Integer* q, const Query* queries, const uint8_t* keys, int64_t width, float* scores) {
    constexpr int OF_TILE = CACHE_TILE / WIDTH, PARTS = TILES * OF_TILE;
    const int64_t tile = cache_tile_bytes(width, 8);
    Ints acc[AT_ONCE][PARTS];
#pragma GCC unroll 8
    for (int r = 0; r < AT_ONCE; ++r)
#pragma GCC unroll 8
      for (int p = 0; p < PARTS; ++p) acc[r][p] = Ints{} + queries[r].minus;
    for (int64_t d = 0; d < width; d += QUAD) {
      Ints even[PARTS], odd[PARTS];
#pragma GCC unroll 8
      for (int p = 0; p < PARTS; ++p) {
        const uint8_t* at = keys + p / OF_TILE * tile + d * CACHE_TILE + p % OF_TILE * QUAD * WIDTH;
        Unsigned key;
        memcpy(&key, at, sizeof key);
        even[p] = (Ints)(key & uint16_t(255));
        odd[p] = (Ints)(key >> 8);
        if (p % OF_TILE == 0) ask_ahead(at);
      }
#pragma GCC unroll 8
      for (int r = 0; r < AT_ONCE; ++r) {
        const Integer* query = q + r * width + d;
        add_both(acc[r], even, odd, query);
      }
    }
    scaled<WIDTH>(acc, queries, keys + width * CACHE_TILE, tile, scores);
  }

  // out (AT_ONCE, width) += weights @ values, for VECTORS * 16 features: a lane a feature
  template <int AT_ONCE, int VECTORS>
  static void add(const uint8_t* weights, const float* units, const uint8_t* values, int64_t positions, int64_t width,
                  bool ask, float* out) {
    constexpr int OF_LANES = LANES / WIDTH, PARTS = VECTORS * OF_LANES;
    Ints acc[AT_ONCE][PARTS] = {};
    Signed sums[PARTS] = {};  // of 64 values each, in two words of a lane
    for (int64_t first = 0; first < positions; first += CACHE_TILE) {
      for (int64_t at = 0; at < CACHE_TILE; at += QUAD) {
        Ints even[PARTS], odd[PARTS];
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; ++p) {
          const uint8_t* from = values + at * width + QUAD * p * WIDTH;
          Signed value;
          memcpy(&value, from, sizeof value);
          const Signed upper = value >> 8, lower = (Signed)((Unsigned)value << 8) >> 8;
          even[p] = (Ints)lower;
          odd[p] = (Ints)upper;
          sums[p] += lower + upper;
          if (ask && p % OF_LANES == 0) ask_ahead(from);
        }
#pragma GCC unroll 4
        for (int r = 0; r < AT_ONCE; ++r)
          add_both(acc[r], even, odd, weights + r * ByteWeights::ROW + at * int64_t(sizeof(Integer)));
      }
      values += cache_tile_bytes(width, 8);
      weights += CACHE_TILE * sizeof(Integer);
    }
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p) {
      const Ints good = Pairs::multiply_add(Ints{}, (Ints)sums[p], Ints{} + 0x00010001) * BELOW;
#pragma GCC unroll 4
      for (int r = 0; r < AT_ONCE; ++r) acc[r][p] += good;
    }
    add_scaled<WIDTH>(acc, units, width, out);
  }

 private:
  // Words 0 and 2 of each four, then 1 and 3.
  static AWQ_INLINE Register<8>::Shorts in_pairs(Register<8>::Shorts words) {
    return AWQ_PLACED(Register<8>::Shorts, words, 0, 2, 1, 3, 4, 6, 5, 7);
  }
  static AWQ_INLINE Sixteen::Shorts in_pairs(Sixteen::Shorts words) {
    return AWQ_PLACED(Sixteen::Shorts, words, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  }

  // shared: four words of what is the same for all lanes.
  template <int PARTS>
  static AWQ_INLINE void add_both(Ints (&acc)[PARTS], const Ints (&even)[PARTS], const Ints (&odd)[PARTS],
                                  const void* shared) {
    const auto first = broadcast<Ints>(shared);
    const auto second = broadcast<Ints>(static_cast<const char*>(shared) + 2 * sizeof(Integer));
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p)
      acc[p] = Pairs::multiply_add(Pairs::multiply_add(acc[p], even[p], first), odd[p], second);
  }
};

}  // namespace
}  // namespace awq
