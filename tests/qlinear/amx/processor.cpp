// The emulated instruction sets, for ../../../qlinear/csrc/common/ops.cpp to find.
#include "../../../qlinear/csrc/common/processor.h"
#include "../../../qlinear/csrc/x86/isas.h"

namespace awq {

Isas isas() {
  static const Isa ISAS[] = {
      {"avx512vnni", true, nullptr, use_avx512vnni},
      {"amx", true, tiles_are_fast, use_amx},
  };
  return {ISAS, sizeof ISAS / sizeof *ISAS};
}

void pause() {}

}  // namespace awq
