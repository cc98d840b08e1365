// A checkpoint's words into the layout, and the layout into plain rows.
#pragma once

#include "layout.h"

namespace awq {

// words (n, ceil(k * bits / 32)), packed along k; zeros (ceil(n * bits / 32), k / group_size), packed along n; scales
// (n, k / group_size) bf16. A warp a unit.
struct PackJob {
  const unsigned* words;
  const unsigned* zeros;
  const Bf16* scales;
  unsigned* codes;
  unsigned char* records;
  int n, k, group_size, unused;
};

// Value `index` of values of `bits` bits, dense from the low bits up, in words `step` apart.
AWQ_DEVICE unsigned value_at(const unsigned* words, long long step, int bits, int index) {
  const int first = index * bits, word = first / 32, shift = first % 32;
  unsigned value = words[word * step] >> shift;
  if (shift + bits > 32) value |= words[(word + 1) * step] << (32 - shift);
  return value & ((1u << bits) - 1);
}

template <int BITS>
AWQ_DEVICE void put_pair(unsigned (&words)[BITS], int row, int i, unsigned low, unsigned high) {
  const unsigned pair = low | high << 16;
  if (BITS == 4) {
    words[i / 4 * 2 + row] |= pair << (4 * (i % 4));
    return;
  }
  const int number = row * PAIRS + i;
  if (number < 15) {
    words[number / 5] |= pair << (3 * (number % 5));
    return;
  }
  for (int bit = 0; bit < 3; ++bit) words[bit] |= ((pair >> bit) & 0x00010001) << 15;
}

template <int BITS>
AWQ_DEVICE void pack_codes(const PackJob& job, int tile, int unit, int lane) {
  const int t = lane % 4, g = lane / 4;
  const long long row_words = divide_up(job.k * BITS, 32);
  unsigned words[BITS] = {};
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int n = tile * TILE + g + 8 * row;
    if (n >= job.n) continue;
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
      const int k = unit * UNIT + i / 4 * 32 + 8 * t + i % 4 * 2;
      if (k >= job.k) continue;
      const unsigned* from = job.words + n * row_words;
      put_pair<BITS>(words, row, i, value_at(from, 1, BITS, k), value_at(from, 1, BITS, k + 1));
    }
  }
  unsigned* to = job.codes + ((long long)tile * units_of(job.k) + unit) * LANES * BITS + lane * BITS;
#pragma unroll
  for (int i = 0; i < BITS; ++i) to[i] = words[i];
}

// The records of the groups that begin in the unit: a lane a row.
template <int BITS>
AWQ_DEVICE void pack_records(const PackJob& job, int tile, int unit, int lane) {
  const int groups = groups_of(job.k, job.group_size), stored = job.k / job.group_size;
  const int first = divide_up(unit * UNIT, job.group_size), end = divide_up((unit + 1) * UNIT, job.group_size);
  for (int group = first; group < end && group < groups; ++group) {
    unsigned char* record = job.records + ((long long)tile * groups + group) * RECORD;
    const int n = tile * TILE + lane, place = lane % 8 * 2 + lane / 8;
    if (lane >= TILE) continue;
    const bool is_there = n < job.n && group < stored;
    reinterpret_cast<Bf16*>(record)[place] = is_there ? job.scales[(long long)n * stored + group] : Bf16(0);
    record[2 * TILE + place] = is_there ? (unsigned char)value_at(job.zeros + group, stored, BITS, n) : 0;
  }
}

template <int BITS>
AWQ_DEVICE void pack(const PackJob& job) {
  const int units = units_of(job.k), lane = threadIdx.x % LANES;
  const long long item = blockIdx.x * (long long)(blockDim.x / LANES) + threadIdx.x / LANES;
  const int tile = int(item / units), unit = int(item % units);
  if (tile >= divide_up(job.n, TILE)) return;
  pack_codes<BITS>(job, tile, unit, lane);
  pack_records<BITS>(job, tile, unit, lane);
}

// Tiles [first_tile, ..) as rows (n, k) of bf16 or fp32, whatever is beyond `rows` left out. A warp a unit.
struct UnpackJob {
  Weight weight;
  void* out;
  int first_tile, rows;
};

AWQ_DEVICE void store_8(float* to, const float (&value)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(value[0], value[1], value[2], value[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(value[4], value[5], value[6], value[7]);
}
AWQ_DEVICE void store_8(Bf16* to, const float (&value)[8]) {
  reinterpret_cast<uint4*>(to)[0] = make_uint4(narrow_pair(value[0], value[1]), narrow_pair(value[2], value[3]),
                                               narrow_pair(value[4], value[5]), narrow_pair(value[6], value[7]));
}

// (q - zero) * scale, exact in fp32
template <int BITS, class Out>
AWQ_DEVICE void unpack(const UnpackJob& job) {
  const Weight& weight = job.weight;
  const int units = units_of(weight.k), groups = groups_of(weight.k, weight.group_size);
  const int lane = threadIdx.x % LANES, t = lane % 4, g = lane / 4;
  const long long item = blockIdx.x * (long long)(blockDim.x / LANES) + threadIdx.x / LANES;
  const int tile = int(item / units), unit = int(item % units);
  if (tile >= divide_up(job.rows, TILE)) return;
  const long long at = job.first_tile + tile;
  unsigned words[BITS];
  load_words<BITS>(weight.codes + (at * units + unit) * LANES * BITS, words);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int k = unit * UNIT + half * 32 + 8 * t, group = (unit * UNIT + half * 32) / weight.group_size;
    if (k >= weight.k) continue;
    const unsigned char* record = weight.records + (at * groups + group) * RECORD;
    const Unpacker<BITS> unpacker(reinterpret_cast<const unsigned short*>(record + 2 * TILE)[g]);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int n = tile * TILE + g + 8 * row;
      const float scale = widen(reinterpret_cast<const Bf16*>(record)[2 * g + row]);
      float value[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned pair = unpacker.pair(words, row, 4 * half + i);
        value[2 * i] = widen(pair) * scale;
        value[2 * i + 1] = widen_high(pair) * scale;
      }
      if (n < job.rows) store_8(static_cast<Out*>(job.out) + (long long)n * weight.k + k, value);
    }
  }
}

}  // namespace awq
