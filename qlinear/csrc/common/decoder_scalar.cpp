// The reference rung: what the compiler makes of the lanes on any x86-64.
#include "lane_ops.h"

namespace awq {
const Pieces scalar_pieces = pieces_with<PairsByHalves<2>>();
}
