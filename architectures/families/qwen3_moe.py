"""Qwen 3 MoE: a Qwen 3 whose MLPs, all or some, are mixtures of experts."""

from typing import TYPE_CHECKING

from architectures.family import Family
from architectures.gguf import Gguf, GgufExperts
from architectures.traits import QK_NORMS, Experts, Fused, of_config
from qlinear.backends.stack import Routing, Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def softmax_routing(config: "Config") -> Routing:
    return Routing(Scoring.SOFTMAX, config.num_experts_per_tok, normalized=config.norm_topk_prob)


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    fused=Fused(window=of_config, head_norms=QK_NORMS, experts=Experts(softmax_routing)),
    gguf=Gguf("qwen3moe", experts=GgufExperts(normalized=True), reads=False),
)

FAMILIES = (QWEN3_MOE,)
