"""A model of `transformers`, of a family with fused traits, described as a `Stack`."""

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from architectures.registry import find_family, fused_families
from engine.modules import LENGTH_DEPENDENT
from qlinear.backends.stack import (
    Dense,
    GatedMlp,
    Matrix,
    Mixture,
    Norms,
    Packed,
    Projection,
    Router,
    Stack,
    StackBlock,
    Unsupported,
)
from qlinear.layer import QLinearPerGrp
from qlinear.replace import GroupedOutput

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def describe(model: nn.Module, max_tokens: int) -> Stack:
    """Describe a model for at most `max_tokens` positions. Raises `Unsupported` with the reason where it cannot be."""
    return _Describer(model, max_tokens).run()


@dataclass(frozen=True)
class Multipliers:
    """Granite's. residual: of what a block adds; logits: they are divided by it.

    A decoder need not know them: with a residual stream that is smaller by `residual` throughout, nothing that a block
    adds is multiplied, and its norms give the same with an epsilon smaller by the square.
    """

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


def _multipliers(config: "Config") -> Multipliers:
    return Multipliers(config.embedding_multiplier, config.residual_multiplier, config.logits_scaling)


class _Describer:
    def __init__(self, model: nn.Module, max_tokens: int):
        self.model, self.config = model, model.config
        family = find_family(self.config)
        if family is None or family.fused is None:
            known = ", ".join(fused_families())
            raise Unsupported(f"the fused decoder does not know {self.config.model_type} models, only {known}")
        self.traits = family.fused
        self.layers = model.get_submodule(family.blocks)
        self.max_tokens = max_tokens
        self.rotations: dict[str | None, tuple[Tensor, Tensor]] = {}

    def run(self) -> Stack:
        config, embedding = self.config, self.model.get_input_embeddings()
        attention, limit = self.layers[0].self_attn, self.traits.qkv_limit
        if limit and getattr(config, limit) is not None:
            raise Unsupported(
                f"this model limits q, k and v to {getattr(config, limit)} (`{limit}`); the fused decoder does not"
            )
        if not attention.is_causal:
            raise Unsupported("the fused decoder takes models that look back only; this one looks both ways")
        cap, of = self.traits.attention_cap, _multipliers(config) if self.traits.multipliers else Multipliers()
        return Stack(
            blocks=[self._block(layer) for layer in self.layers],
            embedding=embedding.weight,
            embedding_scale=_embedding_scale(embedding) * of.embedding / of.residual,
            final_norm=self._norm(self.model.model.norm) / of.logits,
            head=_projection([self.model.lm_head]),
            vocabulary=self.model.lm_head.out_features,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            epsilon=config.rms_norm_eps / of.residual**2,
            activation=getattr(config, self.traits.activation),
            attention_scale=attention.scaling,
            attention_cap=(cap and getattr(config, cap)) or 0.0,
            logit_cap=getattr(config, "final_logit_softcapping", None) or 0.0,
            interleaved=self.traits.interleaved,
        )

    def _block(self, layer: nn.Module) -> StackBlock:
        attention, traits = layer.self_attn, self.traits
        mlp = layer.get_submodule(traits.mlp)
        cosines, sines = self._rotation(attention)
        return StackBlock(
            norms=self._norms(layer),
            qkv=_projection([getattr(attention, name) for name in traits.qkv]),
            o=_projection([attention.o_proj]),
            mlp=self._mixture(mlp) if "experts" in dict(mlp.named_children()) else self._mlp(mlp),
            cosines=cosines,
            sines=sines,
            window=self._window(attention) or 0,
        )

    def _mlp(self, mlp: nn.Module) -> GatedMlp:
        return GatedMlp(_projection([getattr(mlp, name) for name in self.traits.gate_up]), _projection([mlp.down_proj]))

    def _mixture(self, mlp: nn.Module) -> Mixture:
        traits = self.traits.experts
        router, shared = mlp.get_submodule(traits.router), getattr(mlp, traits.shared) if traits.shared else None
        correction = attrgetter(traits.correction)(router).detach().flatten() if traits.correction else None
        return Mixture(
            router=Router(Dense(router.weight.detach(), None), correction, traits.routing(self.config)),
            experts=self._experts(mlp.experts),
            shared=None if shared is None else self._mlp(shared),
            shared_gate=_matrix(getattr(mlp, traits.shared_gate)) if traits.shared_gate else None,
        )

    def _experts(self, experts: nn.Module) -> list[GatedMlp]:
        """Taken apart into linears, or as transformers keeps them: `(experts, N, K)` in one tensor."""
        apart = [expert for name, expert in experts.named_children() if name.isdigit()]
        if apart:
            return [self._mlp(expert) for expert in apart]
        tensors = zip(experts.gate_up_proj.detach(), experts.down_proj.detach(), strict=True)
        return [GatedMlp([Dense(gate_up, None)], [Dense(down, None)]) for gate_up, down in tensors]

    def _norms(self, layer: nn.Module) -> Norms:
        around = [None if name is None else self._norm(getattr(layer, name)) for name in self.traits.norms]
        traits = self.traits
        has_heads = traits.head_norms and (traits.head_norms_if is None or getattr(self.config, traits.head_norms_if))
        heads = (layer.self_attn.q_norm, layer.self_attn.k_norm) if has_heads else ()
        of_heads = [self._norm(norm) for norm in heads] or [None, None]
        return Norms(*around, *of_heads)

    def _norm(self, norm: nn.Module) -> Tensor:
        return norm.weight.detach().float() + self.traits.norm_offset

    def _window(self, attention: nn.Module) -> int | None:
        return {
            "none": None,
            "config": getattr(self.config, "sliding_window", None),
            "attention": getattr(attention, "sliding_window", None),
        }[self.traits.window]

    def _rotation(self, attention: nn.Module) -> tuple[Tensor, Tensor]:
        """Cosines and sines `(max_tokens, rotary_dim / 2)`, from the model's own rotary module."""
        layer_type = attention.layer_type if self.traits.rotary_per_layer_type else None
        if layer_type not in self.rotations:
            self._check_rotation(layer_type)
            of_type = () if layer_type is None else (layer_type,)
            device = self.model.get_input_embeddings().weight.device
            positions = torch.arange(self.max_tokens, device=device).unsqueeze(0)
            with torch.inference_mode():
                tables = self.model.model.rotary_emb(torch.empty(1, device=device), positions, *of_type)
            half = tables[0].shape[-1] // 2  # the other half is the same again
            self.rotations[layer_type] = tuple(table[0, :, :half].contiguous() for table in tables)
        cosines, sines = self.rotations[layer_type]
        if not getattr(attention, "use_rope", True):  # SmolLM 3 leaves some layers as they are
            return torch.ones_like(cosines), torch.zeros_like(sines)
        return cosines, sines

    def _check_rotation(self, layer_type: str | None) -> None:
        rotary = self.model.model.rotary_emb
        rope_type = rotary.rope_type if layer_type is None else rotary.rope_type[layer_type]
        parameters = self.config.rope_parameters
        parameters = parameters if layer_type is None else parameters[layer_type]
        original = parameters.get("original_max_position_embeddings") or self.config.max_position_embeddings
        if rope_type in LENGTH_DEPENDENT and self.max_tokens > original:
            raise Unsupported(
                f"this model's {rope_type} rotation changes beyond {original} tokens, and {self.max_tokens} are "
                f"asked for: the fused decoder keeps one table"
            )


def _projection(modules: list[nn.Module]) -> Projection:
    """One input, several outputs side by side: a joined group, or up to three layers of one kind."""
    if all(isinstance(module, GroupedOutput) for module in modules):
        modules = [modules[0].group.joined]
    return [_matrix(module) for module in modules]


def _matrix(module: nn.Module) -> Matrix:
    if isinstance(module, QLinearPerGrp):
        return Packed(module.prepared)
    if not isinstance(module, nn.Linear):
        raise Unsupported(f"the fused decoder does not know {type(module).__name__} layers")
    return Dense(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _embedding_scale(embedding: nn.Module) -> float:
    scale = getattr(embedding, "embed_scale", None)
    return 1.0 if scale is None else float(scale.to(embedding.weight.dtype))
