// The lanes on AVX2 and FMA.
#include "../common/lane_ops.h"

namespace awq {
const Pieces avx2_pieces = pieces_with<PairsByHalves<2>>();
}
