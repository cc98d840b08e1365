"""Where checkpoints and scales files lie, and how a checkpoint is found again from the options that made it."""

import os
import shlex
from pathlib import Path

from checkpoints.pretrained import model_slug
from qlinear.errors import CheckpointError

MODELS = Path("quantized_models")

# The order in which quantize tries group sizes when none is asked for; decode looks in the same order.
DEFAULT_GROUP_SIZES = (128, 64, 32)

# The best perplexity at less than twice the time of plain rounding (docs/quantization.md).
DEFAULT_SOLVER = "rtn"


def checkpoint_name(
    model: str, w_bit: int, group_size: int | str, awq: bool, solver: str, lm_head: bool, flash_attention: bool
) -> str:
    method = {(True, "rtn"): ["awq"], (False, solver): [solver]}.get((awq, solver), ["awq", solver])
    parts = [model, f"w{w_bit}", f"g{group_size}", *method]
    return "-".join(parts + ["lm_head"] * lm_head + ["flash_attention"] * flash_attention)


def scales_path(model: str, w_bit: int, group_size: int) -> Path:
    cache = os.environ.get("AWQ_CACHE") or Path.home() / ".cache" / "run_awq"
    return Path(cache) / f"{model}-w{w_bit}-g{group_size}.pt"


def find_checkpoint(
    model_name: str,
    w_bit: int,
    group_size: int | None,
    awq: bool,
    solver: str,
    lm_head: bool,
    flash_attention: bool | None,
) -> Path:
    """The checkpoint that `quantize` makes of the same options; raises `CheckpointError` naming those that exist.

    A checkpoint made with `--flash_attention` differs only in its default, so either kind serves; the one made with
    the same flag is preferred.
    """
    model = model_slug(model_name)
    for size in (group_size,) if group_size else DEFAULT_GROUP_SIZES:
        for flash in (True, False) if flash_attention else (False, True):
            path = MODELS / checkpoint_name(model, w_bit, size, awq, solver, lm_head, flash)
            if (path / "config.json").is_file():
                return path
    raise CheckpointError(_missing(model_name, w_bit, group_size, awq, solver, lm_head))


def _missing(model_name: str, w_bit: int, group_size: int | None, awq: bool, solver: str, lm_head: bool) -> str:
    there = sorted(path.parent.name for path in MODELS.glob("[!.]*/config.json"))
    have = f"{MODELS}/ has {', '.join(there)}" if there else f"{MODELS}/ has none"
    wanted = checkpoint_name(model_slug(model_name), w_bit, group_size or "*", awq, solver, lm_head, False)
    make = f"run_awq.py --task quantize --model_name {shlex.quote(model_name)} --w_bit {w_bit}"
    make += f" --group_size {group_size}" * bool(group_size) + " --awq none" * (not awq)
    make += f" --solver {solver}" * (solver != DEFAULT_SOLVER) + " --lm_head" * lm_head
    return f"no checkpoint {MODELS / wanted}; {have}; make it with: {make}"
