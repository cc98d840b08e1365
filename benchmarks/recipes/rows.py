"""The rows of the table of recipes, as data."""

from dataclasses import dataclass
from enum import Enum

from benchmarks.recipes.peers import Peer
from quantization.recipe import Awq, Recipe


class Family(Enum):
    """Rows of one colour in the pictures; the value is its name there."""

    FLOAT = "float"
    TORCHAO = "torchao's recipes"
    PEERS = "other programs"
    FOUR_BITS = "4 bits"
    THREE_BITS = "3 bits"


@dataclass(frozen=True)
class Row:
    """recipe: None for the float model itself, and where another program makes the checkpoint: the peer."""

    name: str
    family: Family
    recipe: Recipe | None = None
    peer: Peer | None = None

    @property
    def drawn(self) -> bool:
        """Whether another draw of the calibration text makes another checkpoint."""
        return self.recipe is not None and reads_text(self.recipe)


def reads_text(recipe: Recipe) -> bool:
    return recipe.awq is not Awq.NONE or recipe.method.reads_text(awq=False)


# The float model, and torchao's five by its names.
_TORCHAO = (
    Row("bfloat16", Family.FLOAT),
    Row("int4wo-g", Family.TORCHAO, Recipe(awq=Awq.NONE, solver="rtn")),
    Row("int4wo-hqq", Family.TORCHAO, Recipe(awq=Awq.NONE, solver="hqq")),
    Row("awq-uint4", Family.TORCHAO, Recipe(solver="rtn")),
    Row("awq-hqq-int4", Family.TORCHAO, Recipe(solver="hqq")),
)
_BITS = {4: Family.FOUR_BITS, 3: Family.THREE_BITS}
DISTILL_STEPS = 100
_OURS = {
    "default": {},
    "learned": {"solver": "learned"},
    "distilled": {"distill": DISTILL_STEPS},
    "learned-distilled": {"solver": "learned", "distill": DISTILL_STEPS},
}
_HEADS = {"": False, "-lm_head": True}


def _peer(name: str, writer: str, bits: int, how: dict, symmetric: bool = False) -> Row:
    return Row(f"{name}-w{bits}", Family.PEERS, peer=Peer(writer, bits, symmetric, how))


def _compressed(bits: int) -> dict:
    """Of llm-compressor: all linears but the output head, with zero points; its groups are asked for when it is run."""
    weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group"}
    return {"ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


_PEERS = (
    _peer("llm-compressor-awq", "llm-compressor", 4, {"AWQModifier": {}, "QuantizationModifier": _compressed(4)}),
    *(_peer("llm-compressor-gptq", "llm-compressor", bits, {"GPTQModifier": _compressed(bits)}) for bits in _BITS),
    *(_peer("gptqmodel", "GPTQModel", bits, {"bits": bits}, symmetric=True) for bits in _BITS),
    *(_peer("autoround", "AutoRound", bits, {"bits": bits, "sym": False}) for bits in _BITS),
)

# At 3 bits, which torchao has none of.
_ROUNDED = (
    Row("rounded-w3", Family.THREE_BITS, Recipe(w_bit=3, awq=Awq.NONE, solver="rtn")),
    Row("awq-rounded-w3", Family.THREE_BITS, Recipe(w_bit=3, solver="rtn")),
)

ROWS = (
    *_TORCHAO,
    *_ROUNDED,
    *(
        Row(f"{name}-w{bits}{suffix}", family, Recipe(w_bit=bits, lm_head=lm_head, **more))
        for bits, family in _BITS.items()
        for name, more in _OURS.items()
        for suffix, lm_head in _HEADS.items()
        if not (lm_head and "distill" in more)
    ),
    Row("mixed-3.3", Family.THREE_BITS, Recipe(bits_per_weight=3.3)),
    Row("mixed-3.8", Family.THREE_BITS, Recipe(bits_per_weight=3.8)),
    *_PEERS,
)
