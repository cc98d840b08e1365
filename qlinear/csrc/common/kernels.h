// Linear layers with grouped 3- or 4-bit weights, in plain C; decoder.h adds whole models to the interface.
//
// A weight is (n, k) = (out_features, in_features); w = (code - zero) * scale with one scale (bf16) and one zero
// point per row and group of `group_size` columns. group_size is 32, 64, 128 or 256 and divides k; bits is 3 or 4.
// Sums are fp32 and products exact, but that the int16 instruction sets ("avx2", "avxvnni", "avx512vnni") first round
// bf16 activations to int16 with one power of two for each row and group (int16.h), and that a weight may ask for int8
// (int8.h). The result has the same bits at any number of threads; with int8, on every instruction set too.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define AWQ_EXPORT __attribute__((visibility("default")))

// Activations and results: both of the same type.
enum awq_dtype { AWQ_BF16 = 0, AWQ_F32 = 1 };

// A weight in the kernels' layout (layout.h). Memory is the caller's; no alignment is needed.
typedef struct awq_weight {
  const uint8_t* packed;  // awq_packed_bytes() bytes, written by awq_pack
  const float* bias;      // n values, or null
  int64_t n;
  int64_t k;
  int32_t bits;
  int32_t group_size;
  int32_t int8;  // 1: bf16 activations are rounded to int8, with one scale for each row and group; fp32 ones never are
} awq_weight;

// The instruction set in use: "scalar" or, on x86-64, "avx2", "avxvnni", "avx512", "avx512vnni" or "avx512bf16". The
// first call of any function picks the best that the processor and the operating system allow.
AWQ_EXPORT const char* awq_isa(void);

// Use `name` from now on; "" means the best there is. Returns 0, or -1 (and changes nothing) where it is unknown or
// this machine lacks it. Not to be called while another thread is inside the library.
AWQ_EXPORT int32_t awq_select_isa(const char* name);

// The table of operations in use (ops.h), entry by entry, for tests. Index 0 to awq_op_count() - 1; null past the end.
// awq_op_isa: the instruction set that the entry comes from, the one in use or one below it; null where it is missing.
AWQ_EXPORT int32_t awq_op_count(void);
AWQ_EXPORT const char* awq_op_name(int32_t index);
AWQ_EXPORT const char* awq_op_isa(int32_t index);

// Where parallel work runs: on the host's pool (torch_parallel_for and torch_get_num_threads of torch's stable C
// interface), or, with null pointers, on threads of our own: `own_threads` in all, the calling thread among them, or as
// many as the system lets there be. With 1 or less, and before the first call of this function, all work runs on the
// calling thread.
//
// The host's parallel_for calls body for ranges of [begin, end), on as many threads as it likes, and returns when the
// last call has. num_threads is asked for each parallel loop: the host may change the number between calls of the
// library. Threads of our own sleep between loops, and end when this function is called again. A forked process does
// not inherit them. Not to be called while another thread is inside the library.
typedef void (*awq_range)(int64_t begin, int64_t end, void* context);
typedef int32_t (*awq_parallel_for)(int64_t begin, int64_t end, int64_t grain, awq_range body, void* context);
typedef int32_t (*awq_get_num_threads)(uint32_t* count);
AWQ_EXPORT void awq_set_threads(awq_parallel_for parallel_for, awq_get_num_threads num_threads, int32_t own_threads);

// How many threads that makes now.
AWQ_EXPORT int32_t awq_threads(void);

// Ask the system for huge pages, before the first write: a decode step touches every page of the weights once, and
// with small ones the page walks show. Memory that is to be huge throughout starts and ends at multiples of 2 MB.
AWQ_EXPORT void awq_use_huge_pages(void* memory, int64_t bytes);

// Bytes of a packed weight: rows are padded to a multiple of 32.
AWQ_EXPORT int64_t awq_packed_bytes(int64_t n, int64_t k, int32_t bits, int32_t group_size);

// Checkpoint layout to kernel layout. words: (n, k * bits / 32), codes packed along k; zeros: (ceil(n * bits / 32),
// k / group_size), packed along n; scales: (n, k / group_size) bf16. All dense and row-major.
AWQ_EXPORT void awq_pack(const uint32_t* words, const uint32_t* zeros, const uint16_t* scales, int64_t n, int64_t k,
                         int32_t bits, int32_t group_size, uint8_t* packed);

// Whether none of `count` bf16 values is infinite or NaN.
AWQ_EXPORT int32_t awq_is_finite(const uint16_t* values, int64_t count);

// bf16 (n, k) in bytes: groups of 64 in a row, the last filled with zeros, have int8 codes, (n, groups, 64), and a bf16
// scale, (n, groups), of which the largest is 127. The bytes 4w to 4w + 3 of a group are its columns 2w, 2w + 1, 32 + 2w and 33 + 2w.
AWQ_EXPORT void awq_to_bytes(const uint16_t* dense, int64_t n, int64_t k, int8_t* bytes, uint16_t* byte_scales);

// What a checkpoint has in 8 bits: codes (n, k), each plus 128, and scales (n, k / group_size) bf16; to bf16 (n, k).
AWQ_EXPORT void awq_from_bytes(const uint8_t* codes, const uint16_t* scales, int64_t n, int64_t k, int64_t group_size,
                               uint16_t* dense);

// awq_pack's way back, one byte a value: codes (n, k), zeros (n, k / group_size), scales (n, k / group_size) bf16.
AWQ_EXPORT void awq_unpack(const awq_weight* weight, uint8_t* codes, uint8_t* zeros, uint16_t* scales);

// y = x @ weight.T + bias. x: (m, k), rows `x_stride` elements apart; y: (m, n), dense. Returns 0, or 1 where there is no
// memory to lay x out in.
AWQ_EXPORT int32_t awq_linear(const awq_weight* weight, const void* x, int64_t m, int64_t x_stride, int32_t dtype,
                              void* y);

#ifdef __cplusplus
}
#endif
