"""StableLM: a Llama with layer norms, which rotates a part of each head; attention and MLP may stand side by side."""

from typing import TYPE_CHECKING

from architectures.family import Family
from architectures.traits import Fused

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def _parallel(config: "Config") -> bool:
    return config.use_parallel_residual


STABLELM = Family(
    model_type="stablelm",
    fused=Fused(
        layer_norm=True,
        norm_biases=True,
        epsilon="layer_norm_eps",
        parallel=_parallel,
        unbiased=("o_proj",),
        partial_rotation=True,
        without=(("qk_layernorm", "has a layer norm of its own for every head of q and k"),),
    ),
)

FAMILIES = (STABLELM,)
