"""How codes are chosen: a method is one file, in `qlinear/solvers` or here, and one line in `METHODS`.

Known before torch is loaded: the command reads the names and their descriptions for its `--help`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlinear.solvers import Solver
    from quantization.unit import BlockTask, Solution


class Text(Enum):
    """When a method looks at calibration text. HQQ by itself works without; beside AWQ, text is there anyway."""

    NEVER = 0
    WITH_AWQ = 1
    ALWAYS = 2


@dataclass(frozen=True)
class Method:
    """description: for the command's help; of_linear: "module:function" for one linear, such as the output head;

    of_block: for a block at once; None takes linear by linear. A method for a block aims at what the float model's
    block makes of the text.
    """

    description: str
    text: Text
    of_linear: str
    of_block: str | None = None

    def reads_text(self, awq: bool) -> bool:
        return self.text is Text.ALWAYS or (awq and self.text is Text.WITH_AWQ)

    @property
    def linear(self) -> "Solver":
        return _load(self.of_linear)

    @property
    def block(self) -> "Callable[[BlockTask, Solution], Solution] | None":
        return self.of_block and _load(self.of_block)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


GPTQ = "qlinear.solvers.gptq:gptq"
METHODS = {
    "rtn": Method("nearest", Text.NEVER, "qlinear.solvers.rtn:rtn"),
    "hqq": Method("on the best range of each group", Text.WITH_AWQ, "qlinear.solvers.hqq:hqq"),
    "gptq": Method("with errors made up for", Text.ALWAYS, GPTQ),
    "learned": Method("all of a block's together", Text.ALWAYS, GPTQ, "quantization.learned:learn_block"),
}
