"""The weights of a checkpoint as `engine.stack.describe` asks for them: mapped, and laid out for the cpu's kernels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from architectures.registry import fused_families
from checkpoints.mapped import Stored
from checkpoints.stored_linears import Linears, Rounded, Tensors
from qlinear.backends.cpu.arrays import as_float32, is_finite, to_bfloat16
from qlinear.backends.cpu.memory import Arena
from qlinear.backends.cpu.pack import TILE, StoredWeight, pack
from qlinear.backends.stack import Dense, GatedMlp, Packed, Projection, Unsupported

HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
# Linear -> the field of the config that says whether it has a bias: the first that there is.
_BIASES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), ("qkv_bias", "use_qkv_bias", "attention_bias", "use_bias")),
    "o_proj": ("attention_out_bias", "attention_bias", "use_bias"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj", "c_fc", "c_proj"), ("mlp_bias", "use_bias")),
}
# What a checkpoint may hold beside the weights.
_ASIDE = "rotary_emb.inv_freq"


class StoredParts:
    """`engine.stack.Parts` over a checkpoint; what was laid out once is kept.

    int8: as of `qlinear.backends.cpu.weight.CpuWeight`. Whatever is not plain raises `Unsupported`: the long way knows
    more, and says what is wrong.
    """

    def __init__(self, tensors: dict[str, Stored], config: Any, quantized: Linears, int8: bool = False):
        self._tensors, self._config = tensors, config
        self._linears, self._rounded, self._int8 = quantized, Rounded(), int8
        family = fused_families().get(config.model_type)
        self._unbiased = family.fused.unbiased if family is not None else ()
        self._arena = Arena()
        self._made: dict[tuple[str, ...], Any] = {}
        self._used: set[str] = set()
        self._modules = {name[: name.find(".", at)] for name in tensors for at in _dots(name)}

    def has(self, name: str) -> bool:
        return name in self._modules

    def linears(self, names: Sequence[str]) -> Projection:
        key = tuple(names)
        if key not in self._made:
            self._made[key] = self._projection(key)
        return self._made[key]

    def dense(self, name: str) -> np.ndarray:
        key = (name, "dense")
        if key not in self._made:
            self._made[key] = self._bfloat16(f"{name}.weight")
        return self._made[key]

    def vector(self, name: str) -> np.ndarray:
        stored = name if name in self._tensors else f"{name}.weight"
        if (stored,) not in self._made:
            self._made[stored,] = as_float32(self._bfloat16(stored)).flatten()
        return self._made[stored,]

    def head(self) -> Projection:
        """The embedding's weight again where none is stored."""
        stored, tied = self.has(HEAD), getattr(self._config, "tie_word_embeddings", None)
        if stored and not tied:
            return self.linears([HEAD])
        if stored or tied is False:
            raise Unsupported("the config and the weights do not agree on the head")
        return [Dense(self.dense(EMBEDDING), None)]

    def outputs(self) -> int:
        return sum(len(one.weight) if isinstance(one, Dense) else one.prepared.n for one in self.head())

    def experts(self, name: str, gate_up: Sequence[str]) -> list[GatedMlp]:
        found = []
        while self.has(one := f"{name}.{len(found)}"):
            found.append(
                GatedMlp(self.linears([f"{one}.{part}" for part in gate_up]), self.linears([f"{one}.down_proj"]))
            )
        if not found:
            raise Unsupported(f"no {name} are stored one by one")
        return found

    def numbers(self, values: np.ndarray) -> np.ndarray:
        return values

    def notes(self) -> tuple[str, ...]:
        """What there is to say of the weights that were laid out so far."""
        return self._rounded.notes()

    def check_all_used(self) -> None:
        """Raise `Unsupported` where the checkpoint holds what nobody has asked for: it is of another model."""
        left = [name for name in self._tensors if name not in self._used and not name.endswith(_ASIDE)]
        if left:
            raise Unsupported(f"nothing is known of its tensor {left[0]}")

    def _projection(self, names: tuple[str, ...]) -> Projection:
        """In one piece where that can be: all quantized alike, and all but the last of whole tiles."""
        packed = [f"{name}.{self._linears.parts[0]}" in self._tensors for name in names]
        if not all(packed):
            return [
                self._one(name) if quantized else Dense(self._bfloat16(f"{name}.weight"), self._bias(name))
                for name, quantized in zip(names, packed, strict=True)
            ]
        weights, biases = [self._quantized(name) for name in names], [self._bias(name) for name in names]
        alike = len({(weight.k, weight.group_size) for weight in weights}) == 1
        whole = all(weight.n % TILE == 0 for weight in weights[:-1])
        if not (alike and whole and len({bias is None for bias in biases}) == 1):
            return [self._one(name) for name in names]
        bias = None if biases[0] is None else np.concatenate(biases)
        prepared = pack(weights, bias, self._arena, self._int8)
        self._release(names)
        return [Packed(prepared)]

    def _one(self, name: str) -> Packed:
        prepared = pack([self._quantized(name)], self._bias(name), self._arena, self._int8)
        self._release([name])
        return Packed(prepared)

    def _quantized(self, name: str) -> StoredWeight:
        self._used |= {f"{name}.{part}" for part in self._linears.parts}
        return self._linears.read(Tensors(name, self._array, self._tensors.__contains__, self._rounded))

    def _bias(self, name: str) -> np.ndarray | None:
        """Float32. What the config says of biases has to be so."""
        stored = f"{name}.bias" in self._tensors
        linear = name.rpartition(".")[2]
        fields = _BIASES.get(linear, ())
        said = next((getattr(self._config, field) for field in fields if hasattr(self._config, field)), None)
        said = False if linear in self._unbiased else said
        if said is not None and bool(said) != stored:
            raise Unsupported(f"the config and the weights do not agree on a bias of {name}")
        return as_float32(self._bfloat16(f"{name}.bias")) if stored else None

    def _bfloat16(self, name: str) -> np.ndarray:
        array = self._array(name)
        if array.dtype.kind != "f" and array.dtype != np.uint16:
            raise Unsupported(f"{name} is stored as {array.dtype}, not as floats")
        array = array if array.dtype == np.uint16 else to_bfloat16(as_float32(array))
        if not is_finite(array):
            raise Unsupported(f"{name} holds a value that is not finite")
        return array

    def _array(self, name: str) -> np.ndarray:
        stored = self._tensors.get(name)
        if stored is None:
            raise Unsupported(f"there is no tensor {name}")
        self._used.add(name)
        return stored.array

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            for part in self._linears.parts:
                if f"{name}.{part}" in self._tensors:
                    self._tensors[f"{name}.{part}"].release()


def _dots(name: str) -> list[int]:
    return [at for at, letter in enumerate(name) if letter == "."]
