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
constexpr int MOST_FEATURES = 256;  // of a head
constexpr int TEAM = 16;            // lanes to a position
constexpr int HEADS = 4;            // query heads at a time
constexpr int AHEAD = 4;            // positions whose keys or values a thread loads at once
constexpr float NO_SCORE = -1e30f;

AWQ_DEVICE void put(float* to, float value) { *to = rounded(value); }
AWQ_DEVICE void put(Bf16* to, float value) { *to = Bf16(narrow(value)); }

// One head through its norm, where it has one, and its rotation, by a warp.
template <class Out>
AWQ_DEVICE void rope(const AttentionJob& job, const Bf16* in, const float* norm, int position, Out* out) {
  constexpr int MOST = MOST_FEATURES / LANES / 2;
  const int lane = threadIdx.x % LANES, half = job.rotary_dim / 2, rest = job.head_dim - job.rotary_dim;
  float a[MOST], b[MOST], cosine[MOST], sine[MOST], squares = 0.0f;
#pragma unroll
  for (int j = 0; j < MOST; ++j) {
    const int i = lane + j * LANES;
    if (i >= half) break;
    a[j] = widen(in[i]), b[j] = widen(in[i + half]);
    cosine[j] = job.cosines[(long long)position * half + i], sine[j] = job.sines[(long long)position * half + i];
    squares += a[j] * a[j] + b[j] * b[j];
  }
  float scale = 1.0f;
  if (norm != nullptr) {
    for (int i = job.rotary_dim + lane; i < job.head_dim; i += LANES) squares += widen(in[i]) * widen(in[i]);
    scale = inverse_rms(warp_sum(squares), job.head_dim, job.epsilon);
  }
#pragma unroll
  for (int j = 0; j < MOST; ++j) {
    const int i = lane + j * LANES;
    if (i >= half) break;
    if (norm != nullptr) a[j] = a[j] * scale * norm[i], b[j] = b[j] * scale * norm[i + half];
    put(out + i, a[j] * cosine[j] - b[j] * sine[j]);
    put(out + i + half, b[j] * cosine[j] + a[j] * sine[j]);
  }
  for (int i = lane; i < rest; i += LANES) {
    const int at = job.rotary_dim + i;
    put(out + at, norm != nullptr ? widen(in[at]) * scale * norm[at] : widen(in[at]));
  }
}

// What one block works on.
struct Part {
  int kv_head, index, begin, end, oldest, group;
  Bf16 *keys, *values;          // (max_tokens, head_dim)
  bool is_only;                        // the only split there is
  float *q, *scores, *totals, *scratch;  // shared: (group, head_dim), (group, split), (group), the rest
};

// What earlier tokens left is on its way while the last kernel is at work.
AWQ_DEVICE void prefetch_past(const AttentionJob& job, const Part& part) {
  const int lines = (part.end - part.begin) * job.head_dim / 64;  // of 128 bytes
  for (int i = threadIdx.x; i < 2 * lines; i += ATTENTION_THREADS)
    prefetch((i < lines ? part.keys : part.values) + part.begin * job.head_dim + i % lines * 64);
}

AWQ_DEVICE void load_heads(const AttentionJob& job, const Part& part, int position) {
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, lane = threadIdx.x % LANES, d = job.head_dim;
  for (int h = warp; h < part.group; h += warps)
    rope(job, job.qkv + (part.kv_head * part.group + h) * d, job.q_norm, position, part.q + h * d);
  if (position >= part.begin + job.split) return;  // of the splits that are there, not the last
  const Bf16* k = job.qkv + (job.heads + part.kv_head) * d;
  if (warp == warps - 1) rope(job, k, job.k_norm, position, part.keys + (long long)position * d);
  if (warp == warps - 2)
    for (int i = lane; i < d; i += LANES) part.values[(long long)position * d + i] = k[job.kv_heads * d + i];
}

// Eight features of `AHEAD` positions, `step` apart; zeros for those that are not seen.
AWQ_DEVICE void load_8(const AttentionJob& job, const Part& part, const Bf16* from, int first, int step,
                       uint4 (&to)[AHEAD]) {
#pragma unroll
  for (int j = 0; j < AHEAD; ++j) {
    const int p = first + j * step;
    const bool is_seen = p >= part.oldest && p < part.end;
    to[j] = is_seen ? *reinterpret_cast<const uint4*>(from + (long long)p * job.head_dim) : make_uint4(0, 0, 0, 0);
  }
}

AWQ_DEVICE float dot_q(const uint4 key, const float* q, float sum) {
  const unsigned pairs[4] = {key.x, key.y, key.z, key.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) sum += widen(pairs[j]) * q[2 * j] + widen_high(pairs[j]) * q[2 * j + 1];
  return sum;
}

AWQ_DEVICE void score(const AttentionJob& job, const Part& part) {
  constexpr int TEAMS = ATTENTION_THREADS / TEAM;
  const int team = threadIdx.x / TEAM, c = threadIdx.x % TEAM * 8, d = job.head_dim, far = c + 8 * TEAM;
  for (int first = part.begin + team; first < part.begin + job.split; first += TEAMS * AHEAD) {
    uint4 near_key[AHEAD] = {}, far_key[AHEAD] = {};
    if (c < d) load_8(job, part, part.keys + c, first, TEAMS, near_key);
    if (far < d) load_8(job, part, part.keys + far, first, TEAMS, far_key);
    for (int h = 0; h < part.group; ++h) {
      const float* q = part.q + h * d;
#pragma unroll
      for (int j = 0; j < AHEAD; ++j) {
        const int p = first + j * TEAMS;
        float sum = c < d ? dot_q(near_key[j], q + c, 0.0f) : 0.0f;
        if (far < d) sum = dot_q(far_key[j], q + far, sum);
#pragma unroll
        for (int step = TEAM / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        sum *= job.scale;
        if (job.cap != 0.0f) sum = job.cap * tanhf(sum / job.cap);
        const bool is_seen = p >= part.oldest && p < part.end;
        if (c == 0) part.scores[h * job.split + p - part.begin] = is_seen ? sum : NO_SCORE;
      }
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
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    for (int i = lane; i < job.split; i += LANES) {
      const float weight = scores[i] == NO_SCORE ? 0.0f : rounded(expf(scores[i] - top));
      scores[i] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    const int at = (part.kv_head * part.group + h) * job.splits + part.index;
    if (lane == 0) job.maxima[at] = top, job.sums[at] = part.totals[h] = sum;
  }
}

// The only split is the whole, and done.
AWQ_DEVICE void store_value(const AttentionJob& job, const Part& part, int h, int feature, float sum) {
  const int head = part.kv_head * part.group + h, d = job.head_dim;
  if (part.is_only)
    job.out[head * d + feature] = Bf16(narrow(sum / part.totals[h]));
  else
    job.split_out[((long long)head * job.splits + part.index) * d + feature] = sum;
}

// Eight features a thread, some positions; then the threads of a feature are added up. Scratch: 8 * HEADS floats a thread
struct Values {
  uint4 ahead[2][AHEAD];  // of the first positions, on their way while there are no weights yet
};

AWQ_DEVICE void add_8(const uint4 value, float weight, float (&sums)[8]) {
  const unsigned pairs[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    sums[2 * e] += weight * widen(pairs[e]);
    sums[2 * e + 1] += weight * widen_high(pairs[e]);
  }
}

AWQ_DEVICE void load_values(const AttentionJob& job, const Part& part, Values& values) {
  const int chunks = job.head_dim / 8, teams = ATTENTION_THREADS / chunks, c = threadIdx.x % chunks * 8;
  const int first = part.begin + threadIdx.x / chunks;
  load_8(job, part, part.values + c, first, teams, values.ahead[0]);
  load_8(job, part, part.values + c, first + teams * AHEAD, teams, values.ahead[1]);
}

AWQ_DEVICE void add_values(const AttentionJob& job, const Part& part, const Values& values) {
  const int d = job.head_dim, chunks = d / 8, teams = ATTENTION_THREADS / chunks;
  const int team = threadIdx.x / chunks, c = threadIdx.x % chunks * 8;
  for (int h = 0; h < part.group; h += HEADS) {
    const int heads = part.group - h < HEADS ? part.group - h : HEADS;
    const float* weights = part.scores + h * job.split - part.begin;
    float sums[HEADS][8] = {};
    auto add = [&](const uint4(&value)[AHEAD], int first) {
#pragma unroll
      for (int j = 0; j < AHEAD; ++j) {
        const int p = first + j * teams;
#pragma unroll
        for (int i = 0; i < HEADS; ++i)
          if (i < heads && p < part.end) add_8(value[j], weights[i * job.split + p], sums[i]);
      }
    };
    if (team < teams) {
      add(values.ahead[0], part.begin + team);
      add(values.ahead[1], part.begin + team + teams * AHEAD);
      for (int first = part.begin + team + 2 * teams * AHEAD; first < part.end; first += teams * AHEAD) {
        uint4 value[AHEAD];
        load_8(job, part, part.values + c, first, teams, value);
        add(value, first);
      }
    }
    if (h != 0) __syncthreads();  // the scratch is read no more
#pragma unroll
    for (int i = 0; i < HEADS; ++i)
      if (team < teams && i < heads) {
        float4* to = reinterpret_cast<float4*>(part.scratch + (team * HEADS + i) * d + c);
        to[0] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
        to[1] = make_float4(sums[i][4], sums[i][5], sums[i][6], sums[i][7]);
      }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * d; i += ATTENTION_THREADS) {
      float sum = 0.0f;
#pragma unroll 8
      for (int t = 0; t < teams; ++t) sum += part.scratch[t * HEADS * d + i];
      store_value(job, part, h + i / d, i % d, sum);
    }
  }
}

// Splits have maxima of their own: they are brought to the largest and added up.
AWQ_DEVICE void merge(const AttentionJob& job, const Part& part, int splits) {
  const int d = job.head_dim;
  for (int i = threadIdx.x; i < part.group * d; i += ATTENTION_THREADS) {
    const int head = part.kv_head * part.group + i / d;
    const float *maxima = job.maxima + head * job.splits, *sums = job.sums + head * job.splits;
    const float* out = job.split_out + (long long)head * job.splits * d + i % d;
    float top = NO_SCORE, total = 0.0f, sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < splits; ++s) top = fmaxf(top, maxima[s]);
#pragma unroll 8
    for (int s = 0; s < splits; ++s) {
      const float weight = expf(maxima[s] - top);
      total += weight * sums[s];
      sum += weight * out[s * d];
    }
    job.out[head * d + i % d] = Bf16(narrow(sum / total));
  }
}

// Whether this block is the last of its head's to get here.
AWQ_DEVICE bool is_last(const AttentionJob& job, const Part& part, int splits) {
  unsigned* turn = reinterpret_cast<unsigned*>(part.q);  // the queries have had their use
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *turn = atomicAdd(job.tickets + part.kv_head, 1u);
  __syncthreads();
  if (*turn != unsigned(splits - 1)) return false;
  if (threadIdx.x == 0) job.tickets[part.kv_head] = 0;
  __threadfence();
  return true;
}

AWQ_DEVICE void attend(const AttentionJob& job) {
  AWQ_SHARED(memory);
  let_next_start();
  const int position = int(job.state[1]), splits = position / job.split + 1;
  Part part;
  part.kv_head = blockIdx.x % job.kv_heads;
  part.index = blockIdx.x / job.kv_heads;
  part.group = job.heads / job.kv_heads;
  part.begin = part.index * job.split;
  part.end = part.begin + job.split < position + 1 ? part.begin + job.split : position + 1;
  part.oldest = job.window != 0 && position >= job.window ? position - job.window + 1 : 0;
  part.keys = job.keys + (long long)part.kv_head * job.max_tokens * job.head_dim;
  part.values = job.values + (long long)part.kv_head * job.max_tokens * job.head_dim;
  part.q = reinterpret_cast<float*>(memory);
  part.scores = part.q + part.group * job.head_dim;
  part.totals = part.scores + part.group * job.split;
  part.scratch = part.totals + divide_up(part.group, 4) * 4;
  part.is_only = splits == 1;
  if (part.index < splits) prefetch_past(job, part);
  wait_for_last();  // all blocks do: a kernel may count on what was before the last one being done too
  if (part.index >= splits) return;

  load_heads(job, part, position);
  __syncthreads();
  Values values;
  load_values(job, part, values);
  score(job, part);
  __syncthreads();
  soften(job, part);
  __syncthreads();
  add_values(job, part, values);
  if (!part.is_only && is_last(job, part, splits)) merge(job, part, splits);
}

}  // namespace awq
