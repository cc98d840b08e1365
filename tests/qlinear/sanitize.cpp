// The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: every instruction set, odd sizes, buffers of
// exactly the promised length, on threads of the library's own. The arithmetic is checked too, in double precision.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../../qlinear/csrc/common/kernels.h"

namespace {

struct Shape {
  int64_t n, k;
  int bits, group;
};

std::mt19937 generator(1);
uint32_t below(uint32_t limit) { return generator() % limit; }
uint16_t to_bf16(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  return uint16_t(word >> 16);
}
float from_bf16(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

// Set value `index` of a dense stream of `bits`-bit values whose words are `stride` apart.
void put(std::vector<uint32_t>& words, int64_t first, int64_t stride, int64_t index, int bits, uint32_t value) {
  for (int b = 0; b < bits; ++b) {
    const int64_t bit = index * bits + b;
    words[size_t(first + bit / 32 * stride)] |= (value >> b & 1) << (bit % 32);
  }
}

// One weight, packed, unpacked and multiplied; returns the number of wrong values.
int check(const Shape& s) {
  const int64_t groups = s.k / s.group, row_words = s.k * s.bits / 32, zero_rows = (s.n * s.bits + 31) / 32;
  std::vector<uint8_t> codes(size_t(s.n * s.k)), zeros(size_t(s.n * groups));
  std::vector<uint16_t> scales(size_t(s.n * groups));
  std::vector<uint32_t> words(size_t(s.n * row_words)), zero_words(size_t(zero_rows * groups));
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t k = 0; k < s.k; ++k) {
      codes[size_t(n * s.k + k)] = uint8_t(below(1u << s.bits));
      put(words, n * row_words, 1, k, s.bits, codes[size_t(n * s.k + k)]);
    }
    for (int64_t g = 0; g < groups; ++g) {
      zeros[size_t(n * groups + g)] = uint8_t(below(1u << s.bits));
      scales[size_t(n * groups + g)] = to_bf16(0.001f + float(below(1000)) / 50000);
      put(zero_words, g, groups, n, s.bits, zeros[size_t(n * groups + g)]);
    }
  }

  const size_t bytes = size_t(awq_packed_bytes(s.n, s.k, s.bits, s.group));
  std::unique_ptr<uint8_t[]> packed(new uint8_t[bytes]);
  awq_pack(words.data(), zero_words.data(), scales.data(), s.n, s.k, s.bits, s.group, packed.get());
  std::vector<float> bias(size_t(s.n), 0.5f);
  const awq_weight weight{packed.get(), bias.data(), s.n, s.k, s.bits, s.group, 0};
  awq_weight rounding = weight;
  rounding.int8 = 1;

  bool int16 = false;  // whether that is what bf16 activations are rounded to
  for (const char* isa : {"avx2", "avxvnni", "avx512vnni"}) int16 |= strcmp(awq_isa(), isa) == 0;
  int wrong = 0;
  std::vector<uint8_t> codes_back(codes.size()), zeros_back(zeros.size());
  std::vector<uint16_t> scales_back(scales.size());
  awq_unpack(&weight, codes_back.data(), zeros_back.data(), scales_back.data());
  wrong += codes_back != codes || zeros_back != zeros || scales_back != scales;

  for (const int64_t m : {0, 1, 2, 3, 5, 8, 13, 27}) {
    std::vector<float> x(size_t(m * s.k)), y(size_t(m * s.n));
    std::vector<uint16_t> x16(x.size()), y16(y.size()), y8(y.size());
    for (size_t i = 0; i < x.size(); ++i) {
      x16[i] = to_bf16(float(below(2001)) / 1000 - 1);
      x[i] = from_bf16(x16[i]);
    }
    awq_linear(&weight, x.data(), m, s.k, AWQ_F32, y.data());
    awq_linear(&weight, x16.data(), m, s.k, AWQ_BF16, y16.data());
    awq_linear(&rounding, x16.data(), m, s.k, AWQ_BF16, y8.data());
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t n = 0; n < s.n; ++n) {
        double exact = 0.5, size = 0.5, levels = 0;
        for (int64_t k = 0; k < s.k; ++k) {
          const size_t group = size_t(n * groups + k / s.group);
          const double scale = from_bf16(scales[group]), value = x[size_t(r * s.k + k)];
          exact += value * scale * (codes[size_t(n * s.k + k)] - zeros[group]);
          size += fabs(value) * scale * 15;
          levels += scale * 15;
        }
        const size_t at = size_t(r * s.n + n);
        wrong += !(fabs(y[at] - exact) <= 1e-6 * size);
        const double allowed = 1e-6 * size + fabs(exact) / 256;
        // no |x| is above 1: int16's steps are 2^-14 at most, int8's 1/127, and 1/256 of one more may be off (int8.h)
        wrong += !(fabs(from_bf16(y16[at]) - exact) <= allowed + (int16 ? levels / 32768 : 0));
        wrong += !(fabs(from_bf16(y8[at]) - exact) <= allowed + levels * (0.5 + 1.0 / 256) / 127);
      }
    }
  }
  return wrong;
}

}  // namespace

int main() {
  int passed = 0, failed = 0;
  awq_set_threads(nullptr, nullptr, 3);
  for (const char* isa : {"scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx"}) {
    if (awq_select_isa(isa) != 0) {
      printf("%s: not on this machine\n", isa);
      continue;
    }
    for (const int bits : {3, 4}) {
      for (const int group : {32, 64, 128, 256}) {
        for (const Shape& shape : {Shape{1, group, bits, group}, Shape{33, 3 * group, bits, group},
                                   Shape{100, 2 * group, bits, group}, Shape{257, 5 * group, bits, group}}) {
          const int wrong = check(shape);
          if (wrong != 0) printf("%s: %d bits, group %d, n %d: %d wrong\n", isa, bits, group, int(shape.n), wrong);
          ++(wrong == 0 ? passed : failed);
        }
      }
    }
  }

  // As where a model is opened beside one that runs: a loop stays with the threads that it began on.
  std::atomic<bool> over{false};
  std::thread changing([&over] {
    while (!over) {
      for (const int threads : {2, 3, 1}) awq_set_threads(nullptr, nullptr, threads);
    }
  });
  for (int i = 0; i < 5; ++i) ++(check(Shape{515, 320, 4, 64}) == 0 ? passed : failed);
  over = true;
  changing.join();
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
