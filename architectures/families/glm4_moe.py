"""GLM 4 MoE: mixtures of experts behind some dense blocks, routed as DeepSeek-V3 does it (arXiv 2412.19437)."""

from typing import TYPE_CHECKING

from architectures.family import Family
from architectures.traits import QK_NORMS, Experts, Fused
from qlinear.backends.stack import Routing, Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def sigmoid_routing(config: "Config") -> Routing:
    return Routing(
        Scoring.SIGMOID,
        config.num_experts_per_tok,
        normalized=config.norm_topk_prob,
        scaling=config.routed_scaling_factor,
        groups=config.n_group,
        top_groups=config.topk_group,
    )


CORRECTED = Experts(sigmoid_routing, correction="e_score_correction_bias", shared="shared_experts")

GLM4_MOE = Family(
    model_type="glm4_moe",
    fused=Fused(
        unbiased=("o_proj",),
        partial_rotation=True,
        head_norms=QK_NORMS,
        head_norms_if="use_qk_norm",
        experts=CORRECTED,
    ),
)

FAMILIES = (GLM4_MOE,)
