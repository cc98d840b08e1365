// Every kernel by name, in one translation unit: what qlinear/backends/cuda launches.
#include "attention.h"
#include "dense.h"
#include "linear.h"
#include "pack.h"

using namespace awq;

AWQ_KERNEL(awq_pack_3, PackJob, 256, 1) { pack<3>(job); }
AWQ_KERNEL(awq_pack_4, PackJob, 256, 1) { pack<4>(job); }
AWQ_KERNEL(awq_unpack_3_bf16, UnpackJob, 256, 1) { unpack<3, Bf16>(job); }
AWQ_KERNEL(awq_unpack_4_bf16, UnpackJob, 256, 1) { unpack<4, Bf16>(job); }
AWQ_KERNEL(awq_unpack_3_fp32, UnpackJob, 256, 1) { unpack<3, float>(job); }
AWQ_KERNEL(awq_unpack_4_fp32, UnpackJob, 256, 1) { unpack<4, float>(job); }

// fine: groups of 32
#define LINEAR(suffix, bits, fine)                                                               \
  AWQ_KERNEL(awq_row_##suffix, RowJob<1>, 256, 2) { linear_row<bits, fine, 1>(job); }            \
  AWQ_KERNEL(awq_gate_up_##suffix, RowJob<2>, 256, 2) { linear_row<bits, fine, 2>(job); }        \
  AWQ_KERNEL(awq_rows_8_##suffix, RowsJob<1>, 256, 2) { linear_rows<bits, fine, 1, 1>(job); }    \
  AWQ_KERNEL(awq_rows_16_##suffix, RowsJob<2>, 256, 1) { linear_rows<bits, fine, 2, 2>(job); }   \
  AWQ_KERNEL(awq_rows_32_##suffix, RowsJob<2>, 256, 1) { linear_rows<bits, fine, 4, 2>(job); }
LINEAR(3, 3, false)
LINEAR(4, 4, false)
LINEAR(3_fine, 3, true)
LINEAR(4_fine, 4, true)

AWQ_KERNEL(awq_embed, EmbedJob, 256, 1) { embed(job); }
AWQ_KERNEL(awq_dense_row, DenseJob<1>, 256, 2) { dense_row<1>(job); }
AWQ_KERNEL(awq_dense_gate_up, DenseJob<2>, 256, 2) { dense_row<2>(job); }
AWQ_KERNEL(awq_attend, AttentionJob, 256, 1) { attend(job); }
