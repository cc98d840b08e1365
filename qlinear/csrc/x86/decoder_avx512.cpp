// The lanes on AVX-512.
#include "../common/lane_ops.h"

namespace awq {
const Pieces avx512_pieces = pieces_with<PairsByHalves<8>>();
}
