// The lanes on AVX-512.
#include "decoder_fill.h"

namespace awq {
const Pieces avx512_pieces = pieces_with<PairsByHalves<8>>();
}
