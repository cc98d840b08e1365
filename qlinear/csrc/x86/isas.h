// What each instruction set of x86-64 overrides in the table of operations. Only to be called where it is there.
#pragma once

#include "../common/ops.h"

namespace awq {

void use_avx2(Ops& ops);
extern void (*const use_avxvnni)(Ops& ops);  // null where the compiler is too old for it
void use_avx512(Ops& ops);
void use_avx512vnni(Ops& ops);
void use_avx512bf16(Ops& ops);
extern void (*const use_amx)(Ops& ops);  // null where the compiler is too old for it

// Whether vdpbf16ps runs at more than half the rate of a fused multiply-add; takes about 50 microseconds to find out.
bool bf16_pairs_are_fast();

// Whether one row of activations takes less than twice as long with tiles as with int16 pairs, and many rows less; takes
// some ten microseconds to find out. Null where `use_amx` is.
extern bool (*const tiles_are_fast)();

}  // namespace awq
