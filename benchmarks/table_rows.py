"""The rows of the torchao table, as data: what `run_awq.py --task quantize` is given for each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """quantize: its arguments, None for the float model itself; family: rows of one colour in the plots."""

    name: str
    family: str
    quantize: tuple[str, ...] | None


# torchao's five, by its names. Scales are searched once for each number of bits and then found in the cache.
_TORCHAO = (
    Row("bfloat16", "float", None),
    Row("int4wo-g", "torchao's recipes", ("--w_bit", "4", "--awq", "none", "--solver", "rtn")),
    Row("int4wo-hqq", "torchao's recipes", ("--w_bit", "4", "--awq", "none", "--solver", "hqq")),
    Row("awq-uint4", "torchao's recipes", ("--w_bit", "4", "--solver", "rtn")),
    Row("awq-hqq-int4", "torchao's recipes", ("--w_bit", "4", "--solver", "hqq")),
)
_SOLVERS = {"default": (), "learned": ("--solver", "learned")}
_HEADS = {"": (), "-lm_head": ("--lm_head",)}

ROWS = _TORCHAO + tuple(
    Row(f"{solver}-w{bits}{suffix}", f"{bits} bits", ("--w_bit", str(bits), *chosen, *head))
    for bits in (4, 3)
    for solver, chosen in _SOLVERS.items()
    for suffix, head in _HEADS.items()
)
