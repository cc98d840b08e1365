"""Mixtral: a Mistral whose MLPs are mixtures of experts."""

from typing import TYPE_CHECKING

from architectures.family import Family
from architectures.traits import Experts, Fused, of_config
from qlinear.backends.stack import Routing, Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def softmax_of_the_chosen(config: "Config") -> Routing:
    return Routing(Scoring.SOFTMAX, config.num_experts_per_tok)


MIXTRAL = Family(
    model_type="mixtral",
    fused=Fused(window=of_config, experts=Experts(softmax_of_the_chosen)),
)

FAMILIES = (MIXTRAL,)
