"""What is asked for when a model is quantized. Known before torch is loaded."""

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from qlinear.errors import OptionError
from qlinear.sizes import BITS, GROUP_SIZES
from qlinear.values import check_choice, plain
from quantization.methods import METHODS, Method


class Awq(StrEnum):
    """Where AWQ's scales come from: a file, the search, nowhere; auto: a file that fits if there is one, or else the
    search.
    """

    AUTO = "auto"
    LOAD = "load"
    RUN = "run"
    NONE = "none"


# The best perplexity at less than twice the time of rtn where text is read (docs/experiments.md), and rtn, which needs
# none, where nothing is searched.
DEFAULT_SOLVERS = {Awq.AUTO: "gptq", Awq.RUN: "gptq", Awq.LOAD: "rtn", Awq.NONE: "rtn"}

EMBEDDING_BITS = (16, 8)
# In this order group sizes are tried when none is asked for.
DEFAULT_GROUP_SIZES = (128, 64, 32)


CHOICES: dict[str, Collection[Any]] = {
    "w_bit": BITS,
    "group_size": (None, *GROUP_SIZES),
    "symmetric": (False, True),
    "lm_head_group_size": (None, *GROUP_SIZES),
    "awq": [awq.value for awq in Awq],
    "solver": (None, *METHODS),
    "lm_head": (False, True),
    "embedding_bits": EMBEDDING_BITS,
    "bos": (None, False, True),
    "flash_attention": (None, False, True),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized; every field has the command's default. Raises `OptionError` for a value out of range.

    w_bit: 3 or 4; bits_per_weight: scales and zero points counted, spent on 3 and 4 bits and on groups as each layer
    needs them, in the place of w_bit; group_size, where it is given, is then that of all; group_size: weights that
    share a scale, 32, 64, 128 or 256; None: the largest of 128, 64, 32 that divides every layer; symmetric: the same
    zero point for every group, for loaders that know no other; awq: "auto", "load", "run" or "none" (see `Awq`);
    scales: the MIT-Han-Lab result file to load or to write, None: one in $AWQ_CACHE; solver: "rtn", "hqq", "gptq" or
    "learned", None: gptq, but rtn where no scales are searched; distill: steps, of 1024 tokens each, in which all
    scales are fitted to the float model's predictions in the end; lm_head: whether the output head is quantized too, in
    groups of lm_head_group_size, None: as large as the others; embedding_bits: 16 or 8, of the embedding in the files,
    and so of a head that is the same matrix; calib_data: "builtin", "self", "pileval", "wikitext2", "c4" or a UTF-8
    file, of which n_samples samples of seqlen tokens are drawn by seed; bos: whether the token for the beginning of a
    text stands before it, once, None: as the tokenizer has it; flash_attention: the checkpoint's default for running
    it, None: the engine's own.
    """

    w_bit: int = 4
    bits_per_weight: float | None = None
    group_size: int | None = None
    symmetric: bool = False
    awq: Awq = Awq.AUTO
    scales: str | None = None
    solver: str | None = None
    distill: int = 0
    lm_head: bool = False
    lm_head_group_size: int | None = None
    embedding_bits: int = 16
    calib_data: str = "builtin"
    n_samples: int = 96
    seqlen: int = 512
    seed: int = 42
    bos: bool | None = None
    flash_attention: bool | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        self._check_mixed()
        for name, least in (("n_samples", 1), ("seqlen", 8), ("seed", 0), ("distill", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise OptionError(f"`{name}={value}` has to be a whole number from {least} up")
        if self.seed >= 2**32:
            raise OptionError(f"`seed={self.seed}` has to be below 2**32")
        object.__setattr__(self, "awq", Awq(self.awq))
        for name in ("scales", "calib_data"):
            value = getattr(self, name)
            if not isinstance(value, str | os.PathLike) and (name, value) != ("scales", None):
                raise OptionError(f"`{name}={value}` is not the name of a file")
            object.__setattr__(self, name, value and os.fspath(value))
        if self.scales is not None and self.awq is Awq.NONE:
            raise OptionError("`scales` means nothing with `awq=none`; leave it out")

    def _check_mixed(self) -> None:
        """Between the fewest bits in the largest groups there may be, and the most in the smallest."""
        bits = self.bits_per_weight
        if bits is None:
            return
        least, most = (
            w_bit + (16 + w_bit * (not self.symmetric)) / (self.group_size or size)
            for w_bit, size in ((min(BITS), max(GROUP_SIZES)), (max(BITS), min(GROUP_SIZES)))
        )
        if type(bits) not in (int, float) or not least <= bits <= most:
            raise OptionError(f"`bits_per_weight={bits}` has to be a number from {least:.3f} to {most:.3f}")
        object.__setattr__(self, "bits_per_weight", float(bits))

    def settled(self, group_size: int | None = None) -> "Recipe":
        """With the solver that is taken by default, and a group size if one is given, filled in."""
        solver = self.solver or DEFAULT_SOLVERS[self.awq]
        size = self.group_size if self.mixed else group_size or self.group_size
        return replace(self, solver=solver, group_size=size)

    @property
    def mixed(self) -> bool:
        """Whether each layer has bits of its own."""
        return self.bits_per_weight is not None

    @property
    def method(self) -> Method:
        return METHODS[self.settled().solver]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "awq": self.awq.value}
