// The kernels under a sanitizer, every lane a thread of the system: a matmul of one row, of several, and an attention.
// Built and run by test_sanitized.py.
#define SHIM_THREADS
#include "shim.cpp"

#include <stdio.h>

using namespace awq;

namespace {

template <class Job>
void run(void (*kernel)(const Job&), const Job& job, unsigned grid, unsigned threads, unsigned shared) {
  shim_launch(reinterpret_cast<shim::Kernel>(kernel), &job, grid, threads, shared);
}

template <int BITS>
struct Packed {
  Packed(int n, int k, int group)
      : words(size_t(n) * k * BITS / 32, 0x5a3c9617), zeros(size_t(n * BITS + 31) / 32 * (k / group), 0x13572468),
        scales(size_t(n) * (k / group), 0x3c00), codes(size_t(divide_up(n, TILE)) * units_of(k) * LANES * BITS + 4),
        records(size_t(divide_up(n, TILE)) * groups_of(k, group) * RECORD + 16) {
    weight = {codes.data(), records.data(), nullptr, n, k, group, 0};
    const PackJob job = {words.data(), zeros.data(), scales.data(), codes.data(), records.data(), n, k, group, 0};
    run(BITS == 3 ? awq_pack_3 : awq_pack_4, job, unsigned(divide_up(divide_up(n, TILE) * units_of(k), 2)), 64, 0);
  }
  std::vector<unsigned> words, zeros;
  std::vector<Bf16> scales;
  std::vector<unsigned> codes;
  std::vector<unsigned char> records;
  Weight weight;
};

void linears() {
  const int n = 40, k = 576;
  Packed<4> four(n, k, 64);
  Packed<3> three(n, k, 32);
  std::vector<uint4> x(4 * k / 8, uint4{0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80});
  std::vector<Bf16> y(4 * n);
  std::vector<float> residual(k, 1.0f), norm(k, 1.0f), next(k);
  const Bf16* rows = reinterpret_cast<const Bf16*>(x.data());
  const Input normed = {nullptr, residual.data(), rows, nullptr, norm.data(), next.data(), 1e-5f, INPUT_NORM};
  run(awq_row_4, RowJob<1>{{four.weight}, normed, {y.data(), 0.0f, OUTPUT_BF16}}, 2, 64, 65536);
  run(awq_rows_8_3_fine, RowsJob<1>{{three.weight}, rows, y.data(), 4, k}, 1, 64, 65536);
  printf("%d\n", int(y[0]));
}

void attention() {
  const int heads = 4, kv_heads = 2, d = 16, tokens = 300, split = 128, splits = 3;
  std::vector<Bf16> qkv((heads + 2 * kv_heads) * d, 0x3f00), out(heads * d);
  std::vector<uint4> cache(2 * kv_heads * tokens * d / 8, uint4{0x3f003f00, 0x3f003f00, 0x3f003f00, 0x3f003f00});
  std::vector<float> angles(tokens * d / 2, 0.5f), split_out(heads * splits * d), maxima(heads * splits), sums(maxima);
  std::vector<unsigned> tickets(kv_heads, 0);
  const long long state[2] = {1, 280};
  Bf16* keys = reinterpret_cast<Bf16*>(cache.data());
  AttentionJob job = {qkv.data(), nullptr, nullptr, angles.data(), angles.data(), keys, keys + kv_heads * tokens * d,
                      state, split_out.data(), maxima.data(), sums.data(), tickets.data(), out.data(), heads, kv_heads,
                      d, d, tokens, 0, split, splits, 0.25f, 0.0f, 1e-5f, 0};
  run(awq_attend, job, unsigned(kv_heads * splits), ATTENTION_THREADS,
      unsigned(4 * (heads / kv_heads * (d + split) + 4 + ATTENTION_THREADS * 8 * HEADS)));
  printf("%d %u\n", int(out[0]), tickets[0]);
}

}  // namespace

int main() {
  linears();
  attention();
}
