"""A model of a family with fused traits, described as a `Stack`: its numbers from the config, its weights by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from architectures.registry import fused_families
from architectures.traits import Fused
from engine.rotation import Rotation, rope_parameters
from qlinear.backends.stack import (
    Array,
    Dense,
    GatedMlp,
    Mixture,
    Norms,
    PlainMlp,
    Projection,
    Router,
    Stack,
    StackBlock,
    Unsupported,
)


class Parts(Protocol):
    """The weights of a model, by the names that its modules have. All raise `Unsupported` for what they do not have."""

    def has(self, name: str) -> bool:
        """Whether there is a module of this name, with weights of its own or in parts."""
        ...

    def linears(self, names: Sequence[str]) -> Projection:
        """Linears that read one input, as their outputs lie side by side."""
        ...

    def dense(self, name: str) -> Array:
        """A module's weight, as the model has it, that is not quantized."""
        ...

    def vector(self, name: str) -> Array:
        """A norm's weight, or a tensor by its own name, as float32 `(features,)`."""
        ...

    def head(self) -> Projection: ...

    def outputs(self) -> int:
        """Rows of the head: the tokens that it predicts."""
        ...

    def experts(self, name: str, gate_up: Sequence[str]) -> list[GatedMlp]: ...

    def numbers(self, values: np.ndarray) -> Array:
        """A table that no file holds, where the weights are."""
        ...


def describe(config: Any, parts: Parts, max_tokens: int) -> Stack:
    """Describe a model for at most `max_tokens` positions. Raises `Unsupported` with the reason where it cannot be."""
    family = fused_families().get(config.model_type)
    if family is None:
        known = ", ".join(fused_families())
        raise Unsupported(f"the fused decoder does not know {config.model_type} models, only {known}")
    try:
        return _Describer(config, family.fused, parts, max_tokens).run(family.blocks)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        raise Unsupported(f"the config does not say what the fused decoder needs: {error}") from error


@dataclass
class _Describer:
    config: Any
    traits: Fused
    parts: Parts
    max_tokens: int

    def run(self, blocks: str) -> Stack:
        config, traits, of = self.config, self.traits, self.traits.multipliers(self.config)
        self._check()
        if of.residual <= 0:
            raise Unsupported(f"the fused decoder multiplies what blocks add by more than 0, not by {of.residual}")
        embedding, head = self.parts.dense("model.embed_tokens"), self.parts.head()
        return Stack(
            blocks=[self._block(f"{blocks}.{index}", index) for index in range(config.num_hidden_layers)],
            embedding=embedding,
            embedding_scale=self._embedding_scale() * of.embedding / of.residual,
            final_norm=self._norm(f"model.{traits.final_norm}") / of.logits,
            final_bias=self._norm_bias(f"model.{traits.final_norm}"),
            head=head,
            vocabulary=self.parts.outputs(),
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=self.head_dim,
            epsilon=getattr(config, traits.epsilon) / of.residual**2,
            activation=getattr(config, traits.activation),
            attention_scale=traits.attention_scale(config, self.head_dim),
            attention_cap=self._cap(traits.attention_cap),
            logit_cap=self._cap(traits.logit_cap),
            interleaved=traits.interleaved,
            layer_norm=traits.layer_norm,
            parallel=traits.parallel(config),
            turned_first=traits.turned_first,
        )

    @cached_property
    def head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    def _cap(self, field: str | None) -> float:
        """0: none. What a family does not read may stand in its config all the same."""
        return (field and getattr(self.config, field)) or 0.0

    def _check(self) -> None:
        for field, what in self.traits.without:
            value = getattr(self.config, field)
            if value is not None and value is not False:
                raise Unsupported(f"this model {what} (`{field}` is {value}); the fused decoder does not")
        if getattr(self.config, "use_bidirectional_attention", False):
            raise Unsupported("the fused decoder takes models that look back only; this one looks both ways")

    def _embedding_scale(self) -> float:
        """Gemma's, which is rounded to bfloat16."""
        if not self.traits.scaled_embedding:
            return 1.0
        bits = np.float32(self.config.hidden_size**0.5).view(np.uint32)
        return float((bits + 0x7FFF + (bits >> 16 & 1) & np.uint32(0xFFFF0000)).view(np.float32))

    def _block(self, name: str, index: int) -> StackBlock:
        traits, attention, mlp = self.traits, f"{name}.self_attn", f"{name}.{self.traits.mlp}"
        cosines, sines = self._rotation(index)
        return StackBlock(
            norms=self._norms(name),
            qkv=self.parts.linears([f"{attention}.{part}" for part in traits.qkv]),
            o=self.parts.linears([f"{attention}.{traits.o}"]),
            mlp=self._mixture(mlp) if self.parts.has(f"{mlp}.experts") else self._mlp(mlp),
            cosines=cosines,
            sines=sines,
            window=traits.window(self.config, index) or 0,
        )

    def _mlp(self, name: str) -> GatedMlp | PlainMlp:
        traits, parts = self.traits, self.parts
        first = parts.linears([f"{name}.{part}" for part in traits.gate_up])
        down = parts.linears([f"{name}.{traits.down}"])
        if traits.plain_mlp:
            return PlainMlp(first, down, [parts.vector(f"{name}.{part}") for part in traits.curve])
        return GatedMlp(first, down)

    def _mixture(self, name: str) -> Mixture:
        traits, parts = self.traits.experts, self.parts
        router = f"{name}.{traits.router}"
        shared_gate = f"{name}.{traits.shared_gate}" if traits.shared_gate else None
        return Mixture(
            router=Router(
                Dense(parts.dense(router), None),
                parts.vector(f"{router}.{traits.correction}") if traits.correction else None,
                traits.routing(self.config),
            ),
            experts=parts.experts(f"{name}.experts", self.traits.gate_up),
            shared=self._mlp(f"{name}.{traits.shared}") if traits.shared and self._shares(name) else None,
            shared_gate=Dense(parts.dense(shared_gate), None) if shared_gate else None,
        )

    def _shares(self, name: str) -> bool:
        return self.parts.has(f"{name}.{self.traits.experts.shared}")

    def _norms(self, block: str) -> Norms:
        traits, (before, after, mlp, output) = self.traits, self.traits.norms
        if traits.parallel(self.config):
            mlp = None
        around = [name and f"{block}.{name}" for name in (before, after, mlp, output)]
        of_heads: list[str | None] = [None, None]
        if traits.head_norms and (traits.head_norms_if is None or getattr(self.config, traits.head_norms_if)):
            of_heads = [f"{block}.self_attn.{name}" for name in traits.head_norms]
        biases = [self._norm_bias(name) for name in (around[0], around[2])]
        return Norms(*(name and self._norm(name) for name in around + of_heads), *biases)

    def _norm(self, name: str) -> Array:
        return self.parts.vector(name) + self.traits.norm_offset

    def _norm_bias(self, name: str | None) -> Array | None:
        return self.parts.vector(f"{name}.bias") if name and self.traits.norm_biases else None

    def _rotation(self, index: int) -> tuple[Array, Array]:
        """Of a block: tables of its layer's type, or of no turning at all."""
        layer_type = self.config.layer_types[index] if self.traits.rotary_per_layer_type else None
        cosines, sines = self._tables(layer_type)
        return (cosines, sines) if self.traits.rotates(self.config, index) else self._unturned

    def _tables(self, layer_type: str | None) -> tuple[Array, Array]:
        if layer_type not in self._rotations:
            given = self.traits.rope(rope_parameters(self.config, layer_type), self.head_dim)
            partial = self.traits.partial_rotation or given["rope_type"] != "default"
            features = int(self.head_dim * given.get("partial_rotary_factor", 1.0)) if partial else self.head_dim
            tables = Rotation(given, features, self.config.max_position_embeddings).tables(self.max_tokens)
            self._rotations[layer_type] = tuple(map(self.parts.numbers, tables))
        return self._rotations[layer_type]

    @cached_property
    def _rotations(self) -> dict[str | None, tuple[Array, Array]]:
        return {}

    @cached_property
    def _unturned(self) -> tuple[Array, Array]:
        cosines, sines = self._tables(None)
        return cosines * 0 + 1, sines * 0
