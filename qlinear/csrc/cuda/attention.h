// A token's attention: rotation, the cache, and the softmax over it, one key/value head and one split of its past a
// block. The block of a head that is done last puts the splits together, in their order: the same bits every time.
#pragma once

#include "dense.h"

namespace awq {

struct AttentionJob {
  const Bf16* qkv;                       // (heads + 2 * kv_heads, head_dim)
  const float *q_norm, *k_norm;          // (head_dim) or null
  const float *cosines, *sines;          // (max_tokens, rotary_dim / 2): features i and i + rotary_dim / 2
  Bf16 *keys, *values;                   // (kv_heads, max_tokens, head_dim)
  const long long* state;                // token, position
  float *split_out, *maxima, *sums;      // (heads, splits, head_dim), (heads, splits) twice
  unsigned* tickets;                     // (kv_heads), zero between kernels
  Bf16* out;                             // (heads, head_dim)
  int heads, kv_heads, head_dim, rotary_dim, max_tokens;
  int window;                            // positions seen, the token's own too; 0: all
  int split, splits;                     // positions of a split, a multiple of 64; how many there are at most
  float scale, cap, epsilon;
  int unused;
};

constexpr int ATTENTION_THREADS = 256;
constexpr int TEAM = 8;   // lanes to a position
constexpr int HEADS = 4;  // query heads at a time
constexpr float NO_SCORE = -1e30f;

AWQ_DEVICE float warp_largest(float value) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

AWQ_DEVICE void put(float* to, float value) { *to = rounded(value); }
AWQ_DEVICE void put(Bf16* to, float value) { *to = Bf16(narrow(value)); }

// One head through its norm, where it has one, and its rotation, by a warp.
template <class Out>
AWQ_DEVICE void rope(const AttentionJob& job, const Bf16* in, const float* norm, int position, Out* out) {
  const int lane = threadIdx.x % LANES, half = job.rotary_dim / 2;
  float scale = 1.0f;
  if (norm != nullptr) {
    float squares = 0.0f;
    for (int i = lane; i < job.head_dim; i += LANES) squares += widen(in[i]) * widen(in[i]);
    scale = inverse_rms(warp_sum(squares), job.head_dim, job.epsilon);
  }
  for (int i = lane; i < job.head_dim - half; i += LANES) {
    const int low = i < half ? i : i + half;  // from `half` on: beyond what is rotated
    const float a = widen(in[low]) * scale * (norm != nullptr ? norm[low] : 1.0f);
    if (i >= half) {
      put(out + low, a);
      continue;
    }
    const float b = widen(in[i + half]) * scale * (norm != nullptr ? norm[i + half] : 1.0f);
    const float cosine = job.cosines[(long long)position * half + i], sine = job.sines[(long long)position * half + i];
    put(out + i, a * cosine - b * sine);
    put(out + i + half, b * cosine + a * sine);
  }
}

// What one block works on.
struct Part {
  int kv_head, index, begin, end, oldest, group;
  float *q, *scores, *scratch;  // shared: (group, head_dim), (group, split), the rest
};

AWQ_DEVICE void load_heads(const AttentionJob& job, const Part& part, int position) {
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, lane = threadIdx.x % LANES, d = job.head_dim;
  const bool has_token = position < part.begin + job.split;  // of the splits that are there, the last
  for (int h = warp; h < part.group; h += warps)
    rope(job, job.qkv + (part.kv_head * part.group + h) * d, job.q_norm, position, part.q + h * d);
  if (!has_token) return;
  const long long cached = ((long long)part.kv_head * job.max_tokens + position) * d;
  const Bf16* k = job.qkv + (job.heads + part.kv_head) * d;
  if (warp == warps - 1) rope(job, k, job.k_norm, position, job.keys + cached);
  if (warp == 0)
    for (int i = lane; i < d; i += LANES) job.values[cached + i] = k[job.kv_heads * d + i];
}

AWQ_DEVICE void score(const AttentionJob& job, const Part& part) {
  const int team = threadIdx.x / TEAM, member = threadIdx.x % TEAM, d = job.head_dim;
  for (int h = 0; h < part.group; h += HEADS)
#pragma unroll 2
    for (int p = part.begin + team; p < part.begin + job.split; p += ATTENTION_THREADS / TEAM) {
      const bool is_seen = p >= part.oldest && p < part.end;
      const Bf16* key = job.keys + ((long long)part.kv_head * job.max_tokens + p) * d;
      float sums[HEADS] = {};
      if (is_seen)
        for (int c = 8 * member; c < d; c += 8 * TEAM) {
          const uint4 of_key = *reinterpret_cast<const uint4*>(key + c);
          const unsigned pairs[4] = {of_key.x, of_key.y, of_key.z, of_key.w};
#pragma unroll
          for (int i = 0; i < HEADS; ++i) {
            if (h + i >= part.group) break;
            const float* q = part.q + (h + i) * d + c;
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[i] += widen(pairs[j]) * q[2 * j] + widen_high(pairs[j]) * q[2 * j + 1];
          }
        }
#pragma unroll
      for (int i = 0; i < HEADS; ++i) {
        float sum = sums[i];
#pragma unroll
        for (int step = TEAM / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        sum *= job.scale;
        if (job.cap != 0.0f) sum = job.cap * tanhf(sum / job.cap);
        if (member == 0 && h + i < part.group) part.scores[(h + i) * job.split + p - part.begin] = is_seen ? sum : NO_SCORE;
      }
    }
}

// Scores become weights, rounded to bf16; what is divided by is the sum of what was added up.
AWQ_DEVICE void soften(const AttentionJob& job, const Part& part) {
  const int lane = threadIdx.x % LANES;
  for (int h = threadIdx.x / LANES; h < part.group; h += blockDim.x / LANES) {
    float* scores = part.scores + h * job.split;
    float top = NO_SCORE, sum = 0.0f;
    for (int i = lane; i < job.split; i += LANES) top = fmaxf(top, scores[i]);
    top = warp_largest(top);
    for (int i = lane; i < job.split; i += LANES) {
      const float weight = scores[i] == NO_SCORE ? 0.0f : rounded(expf(scores[i] - top));
      scores[i] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    const int at = (part.kv_head * part.group + h) * job.splits + part.index;
    if (lane == 0) job.maxima[at] = top, job.sums[at] = sum;
  }
}

// Eight features a thread, some positions; then the threads of a feature are added up. Scratch: 8 * HEADS floats a thread
AWQ_DEVICE void add_values(const AttentionJob& job, const Part& part) {
  const int d = job.head_dim, chunks = d / 8, teams = ATTENTION_THREADS / chunks;
  const int team = threadIdx.x / chunks, c = threadIdx.x % chunks * 8;
  for (int h = 0; h < part.group; h += HEADS) {
    float sums[HEADS][8] = {};
    if (team < teams)
#pragma unroll 4
      for (int p = part.begin + team; p < part.end; p += teams) {
        if (p < part.oldest) continue;
        const Bf16* value = job.values + ((long long)part.kv_head * job.max_tokens + p) * d + c;
        const uint4 of_value = *reinterpret_cast<const uint4*>(value);
        const unsigned pairs[4] = {of_value.x, of_value.y, of_value.z, of_value.w};
#pragma unroll
        for (int i = 0; i < HEADS; ++i) {
          const float weight = h + i < part.group ? part.scores[(h + i) * job.split + p - part.begin] : 0.0f;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sums[i][2 * j] += weight * widen(pairs[j]);
            sums[i][2 * j + 1] += weight * widen_high(pairs[j]);
          }
        }
      }
    __syncthreads();
    if (team < teams)
#pragma unroll
      for (int i = 0; i < HEADS; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) part.scratch[(team * HEADS + i) * d + c + j] = sums[i][j];
    __syncthreads();
    for (int i = threadIdx.x; i < HEADS * d; i += ATTENTION_THREADS) {
      if (h + i / d >= part.group) continue;
      float sum = 0.0f;
      for (int t = 0; t < teams; ++t) sum += part.scratch[t * HEADS * d + i];
      const int head = part.kv_head * part.group + h + i / d;
      job.split_out[((long long)head * job.splits + part.index) * d + i % d] = sum;
    }
  }
}

// Splits have maxima of their own: they are brought to the largest and added up.
AWQ_DEVICE void merge(const AttentionJob& job, const Part& part, int splits) {
  const int d = job.head_dim;
  for (int i = threadIdx.x; i < part.group * d; i += ATTENTION_THREADS) {
    const int head = part.kv_head * part.group + i / d;
    const float* maxima = job.maxima + head * job.splits;
    float top = NO_SCORE, total = 0.0f, sum = 0.0f;
    for (int s = 0; s < splits; ++s) top = fmaxf(top, maxima[s]);
    for (int s = 0; s < splits; ++s) {
      const float weight = expf(maxima[s] - top);
      total += weight * job.sums[head * job.splits + s];
      sum += weight * job.split_out[((long long)head * job.splits + s) * d + i % d];
    }
    job.out[head * d + i % d] = Bf16(narrow(sum / total));
  }
}

AWQ_DEVICE void attend(const AttentionJob& job) {
  AWQ_SHARED(memory);
  wait_for_last();
  let_next_start();
  const int position = int(job.state[1]), splits = position / job.split + 1;
  Part part;
  part.kv_head = blockIdx.x % job.kv_heads;
  part.index = blockIdx.x / job.kv_heads;
  if (part.index >= splits) return;
  part.group = job.heads / job.kv_heads;
  part.begin = part.index * job.split;
  part.end = part.begin + job.split < position + 1 ? part.begin + job.split : position + 1;
  part.oldest = job.window != 0 && position >= job.window ? position - job.window + 1 : 0;
  part.q = reinterpret_cast<float*>(memory);
  part.scores = part.q + part.group * job.head_dim;
  part.scratch = part.scores + part.group * job.split;

  load_heads(job, part, position);
  __syncthreads();
  score(job, part);
  __syncthreads();
  soften(job, part);
  __syncthreads();
  add_values(job, part);
  __threadfence();
  __syncthreads();
  unsigned* turn = reinterpret_cast<unsigned*>(part.scratch);
  if (threadIdx.x == 0) *turn = atomicAdd(job.tickets + part.kv_head, 1u);
  __syncthreads();
  if (*turn != unsigned(splits - 1)) return;
  __threadfence();
  merge(job, part, splits);
  if (threadIdx.x == 0) job.tickets[part.kv_head] = 0;
}

}  // namespace awq
