"""Mixtral: a Mistral whose MLPs are mixtures of experts."""

from typing import TYPE_CHECKING

from architectures.family import Experts, Family, Fused
from qlinear.backends.stack import Routing, Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def softmax_of_the_chosen(config: "Config") -> Routing:
    return Routing(Scoring.SOFTMAX, config.num_experts_per_tok)


MIXTRAL = Family(
    model_type="mixtral",
    fused=Fused(window="config", experts=Experts(softmax_of_the_chosen)),
)

FAMILIES = (MIXTRAL,)
