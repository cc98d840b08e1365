"""ERNIE 4.5 MoE: a Llama whose rotation turns neighbours, with mixtures of experts in some of its blocks."""

from typing import TYPE_CHECKING

from architectures.family import Family
from architectures.traits import Experts, Fused
from qlinear.backends.stack import Routing, Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def _routing(config: "Config") -> Routing:
    return Routing(Scoring.SOFTMAX, config.num_experts_per_tok, least_sum=config.moe_norm_min)


ERNIE4_5_MOE = Family(
    model_type="ernie4_5_moe",
    fused=Fused(
        interleaved=True,
        experts=Experts(_routing, correction="moe_statics.e_score_correction_bias", shared="shared_experts"),
    ),
)

FAMILIES = (ERNIE4_5_MOE,)
