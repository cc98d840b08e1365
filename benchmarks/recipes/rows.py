"""The rows of the table of recipes, as data."""

from dataclasses import dataclass
from enum import Enum

from quantization.recipe import Awq, Recipe


class Family(Enum):
    """Rows of one colour in the pictures; the value is its name there."""

    FLOAT = "float"
    TORCHAO = "torchao's recipes"
    FOUR_BITS = "4 bits"
    THREE_BITS = "3 bits"


@dataclass(frozen=True)
class Row:
    """recipe: None for the float model itself."""

    name: str
    family: Family
    recipe: Recipe | None


# torchao's five, by its names. Scales are searched once for each number of bits and then found in the cache.
_TORCHAO = (
    Row("bfloat16", Family.FLOAT, None),
    Row("int4wo-g", Family.TORCHAO, Recipe(awq=Awq.NONE, solver="rtn")),
    Row("int4wo-hqq", Family.TORCHAO, Recipe(awq=Awq.NONE, solver="hqq")),
    Row("awq-uint4", Family.TORCHAO, Recipe(solver="rtn")),
    Row("awq-hqq-int4", Family.TORCHAO, Recipe(solver="hqq")),
)
_BITS = {4: Family.FOUR_BITS, 3: Family.THREE_BITS}
_SOLVERS = {"default": None, "learned": "learned"}
_HEADS = {"": False, "-lm_head": True}

ROWS = _TORCHAO + tuple(
    Row(f"{name}-w{bits}{suffix}", family, Recipe(w_bit=bits, solver=solver, lm_head=lm_head))
    for bits, family in _BITS.items()
    for name, solver in _SOLVERS.items()
    for suffix, lm_head in _HEADS.items()
)
