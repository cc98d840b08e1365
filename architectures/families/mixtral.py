"""Mixtral: a Mistral whose MLPs are mixtures of experts."""

from dataclasses import replace
from typing import TYPE_CHECKING

from architectures.families.llama import LLAMA
from architectures.family import Family
from architectures.gguf import GgufExperts
from architectures.traits import Experts, Fused, of_config
from qlinear.backends.stack import Routing, Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def softmax_of_the_chosen(config: "Config") -> Routing:
    return Routing(Scoring.SOFTMAX, config.num_experts_per_tok)


# llama.cpp calls it a Llama that has experts.
_EXPERTS = GgufExperts(normalized=True, count="num_local_experts", width="intermediate_size", named_width=False)

MIXTRAL = Family(
    model_type="mixtral",
    fused=Fused(window=of_config, experts=Experts(softmax_of_the_chosen)),
    gguf=replace(LLAMA.gguf, experts=_EXPERTS, reads=False),
)

FAMILIES = (MIXTRAL,)
