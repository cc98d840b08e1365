// Checkpoint words to packed tiles and back.
#include <sys/mman.h>

#include <atomic>

#include "kernels.h"
#include "lanes.h"
#include "layout.h"
#include "ops.h"
#include "threads.h"

void awq_use_huge_pages(void* memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = 4096;
  const uintptr_t first = (uintptr_t(memory) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = (uintptr_t(memory) + uintptr_t(bytes)) / PAGE * PAGE;
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

int64_t awq_packed_bytes(int64_t n, int64_t k, int32_t bits, int32_t group_size) {
  return awq::tiles_of(n) * awq::tile_bytes(bits, k, group_size);
}

void awq_pack(const uint32_t* words, const uint32_t* zeros, const uint16_t* scales, int64_t n, int64_t k,
              int32_t bits, int32_t group_size, uint8_t* packed) {
  using namespace awq;
  struct Job {
    PackJob source;
    PackTile pack_tile;
    int64_t bytes;
    uint8_t* packed;
  };
  const int64_t bytes = tile_bytes(bits, k, group_size);
  Job job{{words, zeros, scales, n, k, group_size}, ops().pack_tile(bits), bytes, packed};
  for_range(
      tiles_of(n), 4,
      [](int64_t begin, int64_t end, void* context) {
        const Job& j = *static_cast<Job*>(context);
        for (int64_t tile = begin; tile < end; ++tile) j.pack_tile(j.source, tile, j.packed + tile * j.bytes);
      },
      &job);
}

void awq_to_bytes(const uint16_t* dense, int64_t n, int64_t k, int8_t* bytes, uint16_t* byte_scales) {
  struct Job {
    const uint16_t* dense;
    int64_t k;
    int8_t* bytes;
    uint16_t* scales;
  } job{dense, k, bytes, byte_scales};
  awq::for_range(
      n, 256,
      [](int64_t begin, int64_t end, void* context) {
        const Job& j = *static_cast<Job*>(context);
        const int64_t groups = awq::byte_groups(j.k);
        for (int64_t row = begin; row < end; ++row)
          awq::ops().to_bytes(j.dense + row * j.k, j.k, j.bytes + row * groups * awq::BYTE_GROUP, j.scales + row * groups);
      },
      &job);
}

void awq_from_bytes(const uint8_t* codes, const uint16_t* scales, int64_t n, int64_t k, int64_t group_size,
                    uint16_t* dense) {
  struct Job {
    const uint8_t* codes;
    const uint16_t* scales;
    int64_t groups, group_size;
    uint16_t* dense;
  } job{codes, scales, k / group_size, group_size, dense};
  awq::for_range(
      n * job.groups, 4096,
      [](int64_t begin, int64_t end, void* context) {
        const Job& j = *static_cast<Job*>(context);
        for (int64_t group = begin; group < end; ++group) {
          const float scale = awq::widen(j.scales[group]);
          const uint8_t* from = j.codes + group * j.group_size;
          uint16_t* to = j.dense + group * j.group_size;
          for (int64_t i = 0; i < j.group_size; ++i) to[i] = awq::narrow(float(from[i] - 128) * scale);
        }
      },
      &job);
}

int32_t awq_is_finite(const uint16_t* values, int64_t count) {
  struct Job {
    const uint16_t* values;
    std::atomic<int32_t> finite{1};
  } job{values};
  awq::for_range(
      count, 1 << 18,
      [](int64_t begin, int64_t end, void* context) {
        Job& j = *static_cast<Job*>(context);
        uint16_t found = 0;
        for (int64_t i = begin; i < end; ++i) found |= (j.values[i] & 0x7f80) == 0x7f80;
        if (found) j.finite.store(0, std::memory_order_relaxed);
      },
      &job);
  return job.finite.load(std::memory_order_relaxed);
}

void awq_unpack(const awq_weight* weight, uint8_t* codes, uint8_t* zeros, uint16_t* scales) {
  using namespace awq;
  const int64_t k = weight->k, group_size = weight->group_size, groups = k / group_size;
  const int bits = weight->bits, half = 1 << (bits - 1);
  for (int64_t row = 0; row < weight->n; ++row) {
    const int lane = int(row % TILE);
    const uint8_t* record = weight->packed + row / TILE * tile_bytes(bits, k, group_size);
    for (int64_t g = 0; g < groups; ++g, record += record_bytes(bits, group_size)) {
      memcpy(scales + row * groups + g, record + 2 * lane, sizeof *scales);
      zeros[row * groups + g] = uint8_t(int8_t(record[SCALE_BYTES + lane]) + half);
      for (int64_t column = 0; column < group_size; ++column) {
        const uint8_t* chunk = record + HEADER_BYTES + column / CHUNK * chunk_bytes(bits);
        codes[row * k + g * group_size + column] =
            uint8_t(code_at(chunk, bits, lane, int(column % CHUNK)) + half);
      }
    }
  }
}
