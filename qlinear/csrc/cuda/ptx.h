// What the kernels use of the GPU beyond C++, one function an instruction. Compiled for a CPU, where the tests run the
// same kernels, shim.h (tests/qlinear/cuda) brings the same names.
#pragma once

#ifndef __CUDACC__
#include "shim.h"
#else

#define AWQ_DEVICE __device__ __forceinline__
#define AWQ_SHARED(name) extern __shared__ uint4 name[]
#define AWQ_KERNEL(name, Job, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Job job)

namespace awq {

// 16 bytes of global memory to shared memory, past L1, in the background.
AWQ_DEVICE void copy_16(void* to, const void* from) {
  const unsigned address = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
// A line of global memory to L2, in the background; a hint.
AWQ_DEVICE void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
AWQ_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most `LEFT` of this thread's groups of copies are under way.
template <int LEFT>
AWQ_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// (value & mask) | bits, as the one instruction that it is
AWQ_DEVICE unsigned masked_or(unsigned value, unsigned mask, unsigned bits) {
  unsigned out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(value), "r"(mask), "r"(bits));
  return out;
}

// a * b + c of two bf16 values each
AWQ_DEVICE unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {
  unsigned d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// d (16, 8) = a (16, 16) @ b (16, 8) + c, bf16 products summed in fp32. With t = lane % 4 and g = lane / 4, a lane holds
//   a  (g, 2t..2t+1), (g + 8, 2t..2t+1), (g, 2t+8..2t+9), (g + 8, 2t+8..2t+9)
//   b  (2t..2t+1, g), (2t+8..2t+9, g)
//   c  (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
AWQ_DEVICE void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Of kernels launched one after the other so that the next may start early: let it, and wait until the last is done.
AWQ_DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
AWQ_DEVICE void wait_for_last() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace awq
#endif
