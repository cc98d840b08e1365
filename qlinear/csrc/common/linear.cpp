#include "linear.h"

#include <stdlib.h>

#include "layout.h"
#include "threads.h"

namespace awq {
namespace {

constexpr int64_t PANEL_ROWS = 512;       // rows laid out at a time: bounds the scratch memory
constexpr int64_t CACHED_BYTES = 640 << 10;  // activations that stay in L2 while the tiles stream past them
constexpr int64_t SERIAL_WORK = 1 << 17;  // products below which another thread costs more than it saves

int64_t at_least_one(int64_t value) { return value > 1 ? value : 1; }

// Units run tile by tile within a superblock of rows, so that its activations stay in L2.
int64_t blocks_per_superblock(const Activations& a) {
  return at_least_one(CACHED_BYTES / (a.route->rows * a.k * a.route->element_bytes));
}

int64_t superblocks(const Activations& a) {
  const int64_t size = blocks_per_superblock(a);
  return (a.blocks() + size - 1) / size;
}

// Memory that grows and stays, so that a token costs no allocation. Null where there is none to be had.
class Scratch {
 public:
  ~Scratch() { free(memory_); }
  void* reserve(int64_t bytes) {
    if (bytes > size_) {
      free(memory_);
      const int64_t wanted = (bytes + 63) / 64 * 64;
      memory_ = aligned_alloc(64, size_t(wanted));
      size_ = memory_ != nullptr ? wanted : 0;
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

void multiply_panel(const awq_weight& weight, const Activations& a, const void* x, int64_t x_stride, void* y) {
  struct Job {
    const awq_weight& weight;
    const Activations& a;
    const void* x;
    int64_t x_stride;
    void* y;
  } job{weight, a, x, x_stride, y};

  const int64_t row_work = at_least_one(SERIAL_WORK / (a.route->rows * a.k));
  for_range(
      a.blocks(), row_work,
      [](int64_t begin, int64_t end, void* context) {
        const Job& j = *static_cast<Job*>(context);
        lay_out_blocks(j.a, j.x, j.x_stride, begin, end);
      },
      &job);

  const int64_t unit_work = a.rows * weight.k * TILE;
  for_range(
      unit_count(weight, a), at_least_one(SERIAL_WORK / unit_work),
      [](int64_t begin, int64_t end, void* context) {
        const Job& j = *static_cast<Job*>(context);
        multiply_units(j.weight, j.a, j.y, j.weight.n, begin, end);
      },
      &job);
}

}  // namespace

int64_t activation_bytes(const Route& route, int64_t rows, int64_t k, int64_t group_size) {
  const int64_t sum_bytes = (rows * (k / group_size) * route.sum_bytes + 63) / 64 * 64;
  return sum_bytes + rows * k * route.element_bytes;
}

Activations activations_in(void* buffer, const Route& route, int64_t rows, int64_t k, int64_t group_size) {
  uint8_t* bytes = static_cast<uint8_t*>(buffer);
  const int64_t x_bytes = rows * k * route.element_bytes;
  const int64_t sum_bytes = activation_bytes(route, rows, k, group_size) - x_bytes;
  return {&route, rows, k, group_size, bytes, bytes + sum_bytes};
}

void lay_out_blocks(const Activations& a, const void* x, int64_t stride, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = a.first_row(b), rows = a.first_row(b + 1) - first;
    const uint8_t* from = static_cast<const uint8_t*>(x) + first * stride * a.route->in_bytes;
    a.route->lay_out({from, stride, rows, a.k, a.group_size}, a.x + first * a.k * a.route->element_bytes,
                     a.sums + first * (a.k / a.group_size) * a.route->sum_bytes);
  }
}

int64_t unit_count(const awq_weight& weight, const Activations& a) { return superblocks(a) * tiles_of(weight.n); }

void multiply_units(const awq_weight& weight, const Activations& a, void* y, int64_t stride, int64_t begin,
                    int64_t end) {
  const int64_t tiles = tiles_of(weight.n), groups = a.k / a.group_size, size = blocks_per_superblock(a);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t tile = unit % tiles, column = tile * TILE;
    const int64_t columns = weight.n - column < TILE ? weight.n - column : TILE;
    const uint8_t* records = weight.packed + tile * tile_bytes(weight.bits, a.k, a.group_size);
    float bias[TILE] = {};
    if (weight.bias != nullptr) memcpy(bias, weight.bias + column, size_t(columns) * sizeof(float));

    const int64_t first_block = unit / tiles * size;
    const int64_t last_block = first_block + size < a.blocks() ? first_block + size : a.blocks();
    for (int64_t b = first_block; b < last_block; ++b) {
      const int64_t first = a.first_row(b), rows = a.first_row(b + 1) - first;
      float out[MAX_ROWS * TILE];
      for (int64_t r = 0; r < rows; ++r) memcpy(out + r * TILE, bias, sizeof bias);
      a.route->block[weight.bits - 3][rows](records, groups, a.group_size,
                                            a.x + first * a.k * a.route->element_bytes,
                                            a.sums + first * groups * a.route->sum_bytes, out);
      uint8_t* to = static_cast<uint8_t*>(y) + (first * stride + column) * a.route->out_bytes;
      a.route->store_rows(out, rows, columns, to, stride);
    }
  }
}

}  // namespace awq

int32_t awq_linear(const awq_weight* weight, const void* x, int64_t m, int64_t x_stride, int32_t dtype, void* y) {
  using namespace awq;
  static thread_local Scratch scratch;
  const Route& route = ops().linear(*weight, awq_dtype(dtype));
  for (int64_t first = 0; first < m; first += PANEL_ROWS) {
    const int64_t rows = m - first < PANEL_ROWS ? m - first : PANEL_ROWS;
    void* buffer = scratch.reserve(activation_bytes(route, rows, weight->k, weight->group_size));
    if (buffer == nullptr) return 1;
    const Activations a = activations_in(buffer, route, rows, weight->k, weight->group_size);
    multiply_panel(*weight, a, static_cast<const uint8_t*>(x) + first * x_stride * route.in_bytes, x_stride,
                   static_cast<uint8_t*>(y) + first * weight->n * route.out_bytes);
  }
  return 0;
}
