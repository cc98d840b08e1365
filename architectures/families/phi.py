"""Phi 1 to 2: attention and an MLP without a gate, side by side behind one layer norm, with biases everywhere."""

from architectures.family import Family
from architectures.traits import Fused, always_parallel

PHI = Family(
    model_type="phi",
    fused=Fused(
        o="dense",
        gate_up=("fc1",),
        down="fc2",
        plain_mlp=True,
        norms=("input_layernorm", None, None, None),
        final_norm="final_layernorm",
        layer_norm=True,
        norm_biases=True,
        epsilon="layer_norm_eps",
        parallel=always_parallel,
        partial_rotation=True,
        without=(("qk_layernorm", "has layer norms on q and k"),),
    ),
)

FAMILIES = (PHI,)
