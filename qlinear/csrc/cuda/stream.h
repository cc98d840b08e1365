// A warp's way through a weight: a ring of stages in shared memory, filled in the background, multiplied in turn.
//
// A block multiplies one tile of rows (or one tile of each of two weights that read the same input, the first the longer
// one) at a time. Its warps take the stages of the tile's columns in turn and add up what they have got in the order of their numbers: no atomics,
// so that the same input gives the same bits. Copies run ahead into the tiles that the block takes next.
#pragma once

#include "layout.h"

namespace awq {

constexpr int STAGE_UNITS = 4, STAGE = STAGE_UNITS * UNIT;  // columns of a stage
constexpr int DEPTH = 4, DEPTH_OF_TWO = 2;                  // stages in the ring of a warp; of two tiles each

// FINE: groups of 32
template <int BITS, bool FINE>
struct StageLayout {
  static constexpr int UNIT_CODES = LANES * BITS * 4;  // bytes
  static constexpr int CODES = STAGE_UNITS * UNIT_CODES;
  static constexpr int BYTES = CODES + RECORD * (FINE ? STAGE / 32 : STAGE / UNIT);
};

// Activations of one unit: what a lane needs of 8 rows.
struct Activations {
  uint4 half[2];  // columns 8t .. 8t + 7, and 32 on from there

  AWQ_DEVICE unsigned low(int fragment) const { return fragment % 2 ? half[fragment / 2].z : half[fragment / 2].x; }
  AWQ_DEVICE unsigned high(int fragment) const { return fragment % 2 ? half[fragment / 2].w : half[fragment / 2].y; }
};

// totals += a unit of a tile @ activations. COLUMNS: times 8 rows of activations.
template <int BITS, bool FINE, int COLUMNS>
struct Multiplier {
  float total[COLUMNS][4];

  AWQ_DEVICE void clear() {
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) total[c][i] = 0.0f;
  }

  // codes: the unit's; record: of the group that it begins with; for groups of 32 the next one's follows.
  AWQ_DEVICE void add(const unsigned char* codes, const unsigned char* record, const Activations (&x)[COLUMNS]) {
    unsigned words[BITS];
    load_words<BITS>(codes, words);
    if (FINE) {
      add_group<0, 2>(words, record, x);
      add_group<2, 4>(words, record + RECORD, x);
    } else {
      add_group<0, 4>(words, record, x);
    }
  }

 private:
  template <int FIRST, int END>
  AWQ_DEVICE void add_group(const unsigned (&words)[BITS], const unsigned char* record, const Activations (&x)[COLUMNS]) {
    const int g = threadIdx.x % LANES / 4;
    const unsigned scales = reinterpret_cast<const unsigned*>(record)[g];
    const Unpacker<BITS> unpacker(reinterpret_cast<const unsigned short*>(record + 2 * TILE)[g]);
    float sums[COLUMNS][4] = {};
#pragma unroll
    for (int f = FIRST; f < END; ++f) {
      const unsigned a[4] = {unpacker.pair(words, 0, 2 * f), unpacker.pair(words, 1, 2 * f),
                             unpacker.pair(words, 0, 2 * f + 1), unpacker.pair(words, 1, 2 * f + 1)};
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) mma(sums[c], a, x[c].low(f), x[c].high(f));
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) total[c][i] += (i < 2 ? widen(scales) : widen_high(scales)) * sums[c][i];
  }
};

template <int BITS, bool FINE, int TILES>
class Stream {
  typedef StageLayout<BITS, FINE> Layout;
  static constexpr int SLOTS = TILES == 1 ? DEPTH : DEPTH_OF_TWO, SLOT = TILES * Layout::BYTES;

 public:
  static constexpr int RING = SLOTS * SLOT;  // bytes of shared memory

  AWQ_DEVICE Stream(const Weight (&weight)[TILES], unsigned char* ring)
      : weight_(weight), ring_(ring), tiles_(divide_up(weight[0].n, TILE)), units_(units_of(weight[0].k)),
        groups_(groups_of(weight[0].k, weight[0].group_size)), shift_(__ffs(weight[0].group_size) - 1) {
    seek(blockIdx.x, threadIdx.x / LANES);
  }

  AWQ_DEVICE int tiles() const { return tiles_; }
  AWQ_DEVICE int stages() const { return divide_up(units_, STAGE_UNITS); }

  AWQ_DEVICE void fill() {
    for (int slot = 0; slot < SLOTS; ++slot) copy_next(slot * SLOT);
  }

  // sums[tile] += this warp's stages of the next tile @ activations. load(column, x): those of the unit from there on.
  template <int COLUMNS, class Load>
  AWQ_DEVICE void multiply(Multiplier<BITS, FINE, COLUMNS> (&sums)[TILES], const Load& load) {
    int stage = turn_;
    [[maybe_unused]] constexpr int UNROLLED = FINE && COLUMNS > 2 ? 2 : STAGE_UNITS;  // of more, registers spill
    for (; stage < stages(); stage += blockDim.x / LANES) {
      wait_copies<SLOTS - 1>();
      __syncwarp();
      const int units = units_ - stage * STAGE_UNITS;
      if (units >= STAGE_UNITS) {
#pragma unroll UNROLLED
        for (int u = 0; u < STAGE_UNITS; ++u) add_unit(sums, stage, u, load);
      } else {
        for (int u = 0; u < units; ++u) add_unit(sums, stage, u, load);
      }
      __syncwarp();
      copy_next(slot_);
      slot_ = slot_ == RING - SLOT ? 0 : slot_ + SLOT;
    }
    turn_ = stage - stages();
  }

 private:
  template <int COLUMNS, class Load>
  AWQ_DEVICE void add_unit(Multiplier<BITS, FINE, COLUMNS> (&sums)[TILES], int stage, int u, const Load& load) {
    Activations x[COLUMNS];
    load(stage * STAGE + u * UNIT, x);
    const int record = FINE ? 2 * u * RECORD : (u * UNIT >> shift_) * RECORD;
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      const unsigned char* from = ring_ + slot_ + i * Layout::BYTES;
      sums[i].add(from + u * Layout::UNIT_CODES, from + Layout::CODES + record, x);
    }
  }

  // To a stage of a tile: this warp's first of it.
  AWQ_DEVICE void seek(int tile, int stage) {
    tile_ = tile;
    stage_ = stage;
    const int lane = threadIdx.x % LANES;
    codes_ = ((long long)tile * units_ + stage_ * STAGE_UNITS) * Layout::UNIT_CODES + 16 * lane;
    records_ = ((long long)tile * groups_ + (stage_ * STAGE >> shift_)) * RECORD + 16 * lane;
  }

  // Copy the stage that comes after those copied so far, if there is one. The groups of copies count all the same.
  AWQ_DEVICE void copy_next(int slot) {
    if (tile_ < tiles_) {
#pragma unroll
      for (int i = 0; i < TILES; ++i)
        if (i == 0 || tile_ * TILE < weight_[i].n) copy(weight_[i], ring_ + slot + i * Layout::BYTES);
      const int step = blockDim.x / LANES;
      stage_ += step;
      codes_ += step * Layout::CODES;
      records_ += (step * STAGE >> shift_) * RECORD;
      if (stage_ >= stages()) seek(tile_ + gridDim.x, stage_ - stages());
    }
    commit_copies();
  }

  AWQ_DEVICE void copy(const Weight& weight, unsigned char* to) const {
    const int lane = threadIdx.x % LANES, units = units_ - stage_ * STAGE_UNITS;
    const unsigned char* codes = reinterpret_cast<const unsigned char*>(weight.codes) + codes_;
    to += 16 * lane;
    if (units >= STAGE_UNITS) {
#pragma unroll
      for (int i = 0; i < BITS; ++i) copy_16(to + 16 * LANES * i, codes + 16 * LANES * i);
    } else {
      for (int i = 0; lane + LANES * i < units * (Layout::UNIT_CODES / 16); ++i)
        copy_16(to + 16 * LANES * i, codes + 16 * LANES * i);
    }
    const int left = groups_ - (stage_ * STAGE >> shift_), most = STAGE >> shift_;
    if (lane < (left < most ? left : most) * (RECORD / 16)) copy_16(to + Layout::CODES, weight.records + records_);
  }

  const Weight (&weight_)[TILES];
  unsigned char* const ring_;
  const int tiles_, units_, groups_, shift_;  // group_size: 1 << shift_
  int slot_ = 0;                              // bytes into the ring: the next to multiply
  int turn_ = threadIdx.x / LANES;            // this warp's first stage of the next tile: the warps go round
  int tile_, stage_;                          // the next to copy
  long long codes_, records_;                 // bytes into the weight: what this lane copies next
};

}  // namespace awq
