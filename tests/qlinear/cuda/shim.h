// A GPU for g++: the kernels of qlinear/csrc/cuda run on the CPU, block after block. The threads of a block are fibers
// that take turns at barriers, or (SHIM_THREADS, for sanitizers) threads of the system. Copies in the background arrive
// when they are waited for and not before; shared memory is full of NaN until something is written to it.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define AWQ_DEVICE inline
#define AWQ_SHARED(name) uint4* name = shim::block->shared
#define AWQ_KERNEL(name, Job, threads, blocks) extern "C" __attribute__((visibility("default"))) void name(const Job& job)

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

namespace shim {

struct Index { unsigned x, y, z; };
struct Copy { void* to; const void* from; };

#ifdef SHIM_THREADS
#define SHIM_LOCAL thread_local
class Barrier {
 public:
  explicit Barrier(unsigned count) : count_(count) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned turn = turn_;
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++turn_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return turn_ != turn; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  unsigned count_, arrived_ = 0, turn_ = 0;
};
#else
#define SHIM_LOCAL
void next_fiber();
class Barrier {
 public:
  explicit Barrier(unsigned count) : count_(count) {}
  void wait() {
    const unsigned turn = turn_;
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++turn_;
    } else {
      while (turn_ == turn) next_fiber();
    }
  }

 private:
  unsigned count_, arrived_ = 0, turn_ = 0;
};
#endif

struct Warp {
  Warp() : barrier(32) {}
  Barrier barrier;
  unsigned lane[32][6];
};

struct Block {
  explicit Block(unsigned threads) : barrier(threads), warps(threads / 32), copies(threads) {}
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<std::vector<std::vector<Copy>>> copies;  // of every thread, groups of them; the last is still open
  uint4* shared = nullptr;
};

extern Block* block;
extern SHIM_LOCAL Index thread;
extern SHIM_LOCAL Index block_at;
extern Index block_size, grid_size;

inline Warp& warp() { return block->warps[thread.x / 32]; }

}  // namespace shim

#define threadIdx shim::thread
#define blockIdx shim::block_at
#define blockDim shim::block_size
#define gridDim shim::grid_size

inline float __uint_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
inline unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = a | (unsigned long long)b << 32;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= unsigned(both >> (8 * (selector >> 4 * i & 7)) & 255) << 8 * i;
  return out;
}
inline int __ffs(int value) { return __builtin_ffs(value); }

inline void __syncthreads() { shim::block->barrier.wait(); }
inline void __syncwarp() { shim::warp().barrier.wait(); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline unsigned atomicAdd(unsigned* at, unsigned value) { return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  shim::Warp& warp = shim::warp();
  const unsigned lane = shim::thread.x % 32;
  memcpy(&warp.lane[lane][0], &value, 4);
  warp.barrier.wait();
  memcpy(&value, &warp.lane[lane ^ unsigned(mask)][0], 4);
  warp.barrier.wait();
  return value;
}

namespace awq {

inline float bf16(unsigned bits) { return __uint_as_float(bits << 16); }

inline void copy_16(void* to, const void* from) { shim::block->copies[shim::thread.x].back().push_back({to, from}); }
inline void prefetch(const void*) {}
inline void commit_copies() { shim::block->copies[shim::thread.x].emplace_back(); }
template <int LEFT>
void wait_copies() {
  auto& groups = shim::block->copies[shim::thread.x];
  while (groups.size() > LEFT + 1) {
    for (const shim::Copy& copy : groups.front()) memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

inline unsigned masked_or(unsigned value, unsigned mask, unsigned bits) { return (value & mask) | bits; }
inline unsigned fma_bf16(unsigned a, unsigned b, unsigned c) {
  const double exact = double(bf16(a)) * bf16(b) + bf16(c);  // of 8-bit mantissas: no rounding here worth speaking of
  const unsigned bits = __float_as_uint(float(exact));
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {
  return fma_bf16(a & 0xffff, b & 0xffff, c & 0xffff) | fma_bf16(a >> 16, b >> 16, c >> 16) << 16;
}

inline void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  shim::Warp& warp = shim::warp();
  const unsigned lane = shim::thread.x % 32, g = lane / 4, t = lane % 4;
  const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  memcpy(warp.lane[lane], mine, sizeof mine);
  warp.barrier.wait();
  for (unsigned i = 0; i < 4; ++i) {
    float sum = d[i];
    const unsigned column = 2 * t + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned half = k / 8, from = k % 8 / 2, shift = k % 2 * 16;
      const unsigned left = warp.lane[4 * g + from][2 * half + i / 2] >> shift;
      const unsigned right = warp.lane[4 * column + from][4 + half] >> shift;
      sum += bf16(left & 0xffff) * bf16(right & 0xffff);
    }
    d[i] = sum;
  }
  warp.barrier.wait();
}

inline void let_next_start() {}
inline void wait_for_last() {}

}  // namespace awq
