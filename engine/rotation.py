"""Rotary position embeddings (Su et al., arXiv 2104.09864) as tables, from what a config says of them.

The kinds are those of transformers' `modeling_rope_utils.py`, in float32 as there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlinear.backends.stack import Unsupported

# Whose angles depend on how long the sequence has become.
LENGTH_DEPENDENT = ("dynamic", "longrope")


@dataclass(frozen=True)
class Rotation:
    """parameters: the config's, `rope_type` and `rope_theta` among them; features: of a head, how many are turned;
    context: the config's `max_position_embeddings`.
    """

    parameters: dict[str, Any]
    features: int
    context: int

    def tables(self, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines `(max_tokens, features / 2)` float32.

        Raises `Unsupported` for a kind that is not known, and for one that turns longer texts by other angles.
        """
        kind = self.parameters["rope_type"]
        if kind not in _KINDS:
            raise Unsupported(f"the fused decoder does not know {kind} rotations")
        original = self.parameters.get("original_max_position_embeddings") or self.context
        if kind in LENGTH_DEPENDENT and max_tokens > original:
            raise Unsupported(
                f"this model's {kind} rotation changes beyond {original} tokens, and {max_tokens} are asked for: the "
                f"fused decoder keeps one table"
            )
        frequencies, factor = _KINDS[kind](self)
        angles = np.arange(max_tokens, dtype=np.float32)[:, None] * frequencies
        return np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)

    @property
    def periods(self) -> np.ndarray:
        """theta^(2i / features), `(features / 2,)`: the inverse frequencies' inverse."""
        exponents = np.arange(0, self.features, 2, dtype=np.float32) / np.float32(self.features)
        return np.float32(self.parameters["rope_theta"]) ** exponents


Frequencies = tuple[np.ndarray, float]


def _default(rotation: Rotation) -> Frequencies:
    return 1 / rotation.periods, 1.0


def _linear(rotation: Rotation) -> Frequencies:
    return 1 / rotation.periods / np.float32(rotation.parameters["factor"]), 1.0


def _llama3(rotation: Rotation) -> Frequencies:
    """Long wavelengths are stretched by `factor`, short ones stay, those between go from one to the other."""
    given, frequencies = rotation.parameters, 1 / rotation.periods
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    turns = given["original_max_position_embeddings"] / (2 * math.pi / frequencies)
    smooth = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    return (1 - smooth) * frequencies / np.float32(given["factor"]) + smooth * frequencies, 1.0


def _yarn(rotation: Rotation) -> Frequencies:
    """Peng et al., arXiv 2309.00071."""
    given, half = rotation.parameters, rotation.features // 2
    original = given["original_max_position_embeddings"]
    factor = given.get("factor") or rotation.context / original
    low, high = (_turning(rotation, given.get(name) or default) for name, default in _YARN_TURNS)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotation.features - 1)
    ramp = (np.arange(half, dtype=np.float32) - np.float32(low)) / np.float32(high - low or 0.001)
    stretched, periods = np.clip(ramp, 0, 1), rotation.periods
    return stretched / (np.float32(factor) * periods) + (1 - stretched) / periods, _yarn_scale(given, factor)


_YARN_TURNS = (("beta_fast", 32), ("beta_slow", 1))


def _turning(rotation: Rotation, turns: float) -> float:
    """The feature pair that turns so often over the original context."""
    given = rotation.parameters
    wavelength = given["original_max_position_embeddings"] / (turns * 2 * math.pi)
    return rotation.features * math.log(wavelength) / (2 * math.log(given["rope_theta"]))


def _yarn_scale(given: dict[str, Any], factor: float) -> float:
    def scale(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    if given.get("attention_factor") is not None:
        return given["attention_factor"]
    if given.get("mscale") and given.get("mscale_all_dim"):
        return scale(given["mscale"]) / scale(given["mscale_all_dim"])
    return scale()


def _longrope(rotation: Rotation) -> Frequencies:
    """Ding et al., arXiv 2402.13753, within the original context."""
    given = rotation.parameters
    original, scale = given["original_max_position_embeddings"], given.get("attention_factor")
    factor = given.get("factor") or rotation.context / original
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return 1 / (np.asarray(given["short_factor"], np.float32) * rotation.periods), scale


# Those that go by the length of the texts that a model was first trained on.
_STRETCHED = ("llama3", "yarn", "longrope")

# A dynamic one is the default within the original context.
_KINDS: dict[str, Callable[[Rotation], Frequencies]] = {
    "default": _default,
    "dynamic": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def rope_parameters(config: Any, layer_type: str | None = None) -> dict[str, Any]:
    """What a config says of the rotation, of layers of one type where types differ.

    Configs written before transformers 5 have `rope_theta` and, for all but the default kind, `rope_scaling`.
    """
    given = getattr(config, "rope_parameters", None)
    if given is None and layer_type is None:
        scaling = dict(getattr(config, "rope_scaling", None) or {"rope_type": "default"})
        given = {"rope_theta": config.rope_theta, **scaling}
    given = dict(given if layer_type is None else given[layer_type])
    given["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    for name in ("rope_theta", "partial_rotary_factor"):
        if hasattr(config, name):
            given.setdefault(name, getattr(config, name))
    if given["rope_type"] in _STRETCHED:
        name = "original_max_position_embeddings"
        of_all = getattr(config, name, None) if layer_type is None else None  # which types of layers do not heed
        given[name] = of_all or given.get(name) or config.max_position_embeddings
    return given
