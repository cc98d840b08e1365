"""What the fused decoder has to know of a model: a table of architectures, and one model described by it."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from qlinear.backends import native_decoder as native
from qlinear.backends.cpu import CpuWeight, huge_pages
from qlinear.backends.native import Weight
from qlinear.layer import QLinearPerGrp
from qlinear.replace import GroupedOutput


class NotFusable(Exception):
    """The fused decoder cannot run this model; the message says why."""


@dataclass(frozen=True)
class Architecture:
    """Where a decoder block keeps its parts, and which variants of the maths it uses.

    norms: before attention, after it, before the MLP, after it (None: there is none).
    norm_offset: what is added to a norm's weight.
    window: "config" or "attention" for where `sliding_window` is to be found, "none" where every position is seen.
    """

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    norms: tuple[str | None, ...] = ("input_layernorm", None, "post_attention_layernorm", None)
    norm_offset: float = 0.0
    head_norms: bool = False
    activation: str = "hidden_act"
    window: str = "none"
    attention_cap: bool = False
    rotary_per_layer_type: bool = False


_GEMMA2_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)

ARCHITECTURES = {
    "llama": Architecture(),
    "mistral": Architecture(window="config"),
    "qwen2": Architecture(window="attention"),
    "qwen3": Architecture(window="attention", head_norms=True),
    "phi3": Architecture(window="config", qkv=("qkv_proj",), gate_up=("gate_up_proj",)),
    "gemma": Architecture(norm_offset=1.0),
    "gemma2": Architecture(
        norm_offset=1.0,
        norms=_GEMMA2_NORMS,
        activation="hidden_activation",
        window="attention",
        attention_cap=True,
    ),
    "gemma3_text": Architecture(
        norm_offset=1.0,
        norms=_GEMMA2_NORMS,
        activation="hidden_activation",
        window="attention",
        head_norms=True,
        rotary_per_layer_type=True,
    ),
}

# Rotations whose angles depend on how long the sequence has become: past the original context a table will not do.
_LENGTH_DEPENDENT = ("dynamic", "longrope")


@dataclass
class Described:
    """A native description and the tensors it points into, which have to live as long as it is used."""

    model: native.Model
    cache: Tensor  # (layers, 2, elements) bf16: keys and values
    kept: list = field(default_factory=list)


def describe(model: nn.Module, max_tokens: int, chunk: int) -> Described:
    """Describe a model for at most `max_tokens` positions. Raises `NotFusable` with the reason where it cannot be."""
    return _Describer(model, max_tokens, chunk).run()


class _Describer:
    def __init__(self, model: nn.Module, max_tokens: int, chunk: int):
        self.model, self.config = model, model.config
        if self.config.model_type not in ARCHITECTURES:
            raise NotFusable(
                f"the fused decoder does not know {self.config.model_type} models, only {', '.join(ARCHITECTURES)}"
            )
        self.architecture = ARCHITECTURES[self.config.model_type]
        self.layers = model.model.layers
        self.max_tokens, self.chunk = max_tokens, chunk
        self.kept: list = []
        self.rotations: dict[str | None, tuple[int, int]] = {}
        self.rotary_dim = 0

    def run(self) -> Described:
        attention = self.layers[0].self_attn
        head_dim, kv_heads = attention.head_dim, self.config.num_key_value_heads
        self._check(attention, head_dim)
        elements = native.decoder_library().awq_cache_elements(self.max_tokens, kv_heads, head_dim)
        shape = len(self.layers), 2, elements
        cache = huge_pages(2 * prod(shape)).view(torch.bfloat16)[: prod(shape)].view(shape)
        cache.zero_()  # so that no token has to wait for pages
        blocks = (native.Block * len(self.layers))(
            *(self._block(layer, keys_values) for layer, keys_values in zip(self.layers, cache, strict=True))
        )
        embedding = self.model.model.embed_tokens
        description = native.Model(
            blocks=blocks,
            embedding=self._bf16(embedding.weight, "the embedding"),
            final_norm=self._norm(self.model.model.norm),
            head=self._projection([self.model.lm_head]),
            layers=len(self.layers),
            vocabulary=self.model.lm_head.out_features,
            hidden=self.config.hidden_size,
            intermediate=self.config.intermediate_size,
            heads=self.config.num_attention_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rotary_dim=self.rotary_dim,
            max_tokens=self.max_tokens,
            chunk=self.chunk,
            epsilon=self.config.rms_norm_eps,
            embedding_scale=_embedding_scale(embedding),
            attention_scale=attention.scaling,
            attention_cap=(self.config.attn_logit_softcapping or 0.0) if self.architecture.attention_cap else 0.0,
            logit_cap=getattr(self.config, "final_logit_softcapping", None) or 0.0,
            activation=native.ACTIVATIONS[getattr(self.config, self.architecture.activation)],
        )
        return Described(description, cache, [*self.kept, blocks])

    def _check(self, attention: nn.Module, head_dim: int) -> None:
        sharing = self.config.num_attention_heads // self.config.num_key_value_heads
        activation = getattr(self.config, self.architecture.activation)
        if activation not in native.ACTIVATIONS:
            raise NotFusable(f"the fused decoder does not know the activation {activation}")
        if head_dim % 2 or head_dim > native.MAX_HEAD_DIM or sharing > native.MAX_SHARING:
            raise NotFusable(
                f"the fused decoder takes heads of up to {native.MAX_HEAD_DIM} features (an even number), "
                f"{native.MAX_SHARING} query heads to a key head; this model has {head_dim} and {sharing}"
            )
        if not attention.is_causal:
            raise NotFusable("the fused decoder takes models that look back only; this one looks both ways")

    def _block(self, layer: nn.Module, keys_values: Tensor) -> native.Block:
        attention, mlp, architecture = layer.self_attn, layer.mlp, self.architecture
        before, after, before_mlp, after_mlp = (
            None if name is None else self._norm(getattr(layer, name)) for name in architecture.norms
        )
        cosines, sines = self._rotation(attention)
        window = {
            "none": None,
            "config": getattr(self.config, "sliding_window", None),
            "attention": getattr(attention, "sliding_window", None),
        }[architecture.window]
        return native.Block(
            input_norm=before,
            attention_norm=after,
            mlp_norm=before_mlp,
            output_norm=after_mlp,
            q_norm=self._norm(attention.q_norm) if architecture.head_norms else None,
            k_norm=self._norm(attention.k_norm) if architecture.head_norms else None,
            qkv=self._projection([getattr(attention, name) for name in architecture.qkv]),
            o=self._projection([attention.o_proj]),
            gate_up=self._projection([getattr(mlp, name) for name in architecture.gate_up]),
            down=self._projection([mlp.down_proj]),
            cosines=cosines,
            sines=sines,
            keys=keys_values[0].data_ptr(),
            values=keys_values[1].data_ptr(),
            window=window or 0,
        )

    def _keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _norm(self, norm: nn.Module) -> int:
        return self._keep(norm.weight.detach().float().add(self.architecture.norm_offset).contiguous())

    def _bf16(self, tensor: Tensor, what: str) -> int:
        if tensor.dtype != torch.bfloat16 or tensor.device.type != "cpu":
            raise NotFusable(f"the fused decoder runs bfloat16 on the cpu; {what} is {tensor.dtype} on {tensor.device}")
        return self._keep(tensor.detach().contiguous())

    def _projection(self, modules: list[nn.Module]) -> native.Projection:
        """One input, several outputs side by side: a joined group, or up to three layers of one kind."""
        if all(isinstance(module, GroupedOutput) for module in modules):
            modules = [modules[0].group.joined]
        matrices = [self._matrix(module) for module in modules]
        if len({(bool(m.dense), m.weight.group_size) for m in matrices}) > 1:
            raise NotFusable("the fused decoder wants layers that read one input to have one group size")
        return native.Projection((native.Matrix * native.PARTS)(*matrices), len(matrices))

    def _matrix(self, module: nn.Module) -> native.Matrix:
        if isinstance(module, QLinearPerGrp):
            weight = module.prepared
            if not isinstance(weight, CpuWeight):
                raise NotFusable("the fused decoder needs the native cpu kernels, which this model does not run on")
            self.kept.append(weight)
            return native.Matrix(weight.native, None)
        if not isinstance(module, nn.Linear):
            raise NotFusable(f"the fused decoder does not know {type(module).__name__} layers")
        n, k = module.weight.shape
        bias = None if module.bias is None else self._keep(module.bias.detach().float().contiguous())
        return native.Matrix(Weight(None, bias, n, k, 0, 0), self._bf16(module.weight, "a linear layer"))

    def _rotation(self, attention: nn.Module) -> tuple[int, int]:
        """Addresses of cosines and sines `(max_tokens, rotary_dim / 2)`, from the model's own rotary module."""
        layer_type = attention.layer_type if self.architecture.rotary_per_layer_type else None
        if layer_type not in self.rotations:
            self._check_rotation(layer_type)
            of_type = () if layer_type is None else (layer_type,)
            positions = torch.arange(self.max_tokens).unsqueeze(0)
            with torch.inference_mode():
                tables = self.model.model.rotary_emb(torch.empty(1), positions, *of_type)
            self.rotary_dim = tables[0].shape[-1]
            half = self.rotary_dim // 2  # the other half is the same again
            self.rotations[layer_type] = tuple(self._keep(table[0, :, :half].contiguous()) for table in tables)
        return self.rotations[layer_type]

    def _check_rotation(self, layer_type: str | None) -> None:
        rotary = self.model.model.rotary_emb
        rope_type = rotary.rope_type if layer_type is None else rotary.rope_type[layer_type]
        parameters = self.config.rope_parameters
        parameters = parameters if layer_type is None else parameters[layer_type]
        original = parameters.get("original_max_position_embeddings") or self.config.max_position_embeddings
        if rope_type in _LENGTH_DEPENDENT and self.max_tokens > original:
            raise NotFusable(
                f"this model's {rope_type} rotation changes beyond {original} tokens, and {self.max_tokens} are "
                f"asked for: the fused decoder keeps one table"
            )


def _embedding_scale(embedding: nn.Module) -> float:
    scale = getattr(embedding, "embed_scale", None)
    return 1.0 if scale is None else float(scale.to(embedding.weight.dtype))
