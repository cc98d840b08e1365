"""Where checkpoints and scales files lie, and how a checkpoint is found again from the options that made it."""

import os
import shlex
from pathlib import Path

from awq_cli.options import DEFAULT_SOLVERS
from checkpoints.pretrained import model_slug
from qlinear.errors import CheckpointError

MODELS = Path("quantized_models")

# The order in which quantize tries group sizes when none is asked for; decode looks in the same order.
DEFAULT_GROUP_SIZES = (128, 64, 32)


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
    awq: str,
    solver: str | None,
    lm_head: bool,
    flash_attention: bool | None,
) -> Path:
    """The checkpoint that `quantize` makes of the same options; raises `CheckpointError` naming those that exist.

    A checkpoint made with `--flash_attention` differs only in its default, so either kind serves; the one made with
    the same flag is preferred. solver: None for those that `quantize` takes by itself, the better one first.
    """
    model, scaled = model_slug(model_name), awq != "none"
    for size in (group_size,) if group_size else DEFAULT_GROUP_SIZES:
        for method in (solver,) if solver else _default_solvers(scaled):
            for flash in (True, False) if flash_attention else (False, True):
                path = MODELS / checkpoint_name(model, w_bit, size, scaled, method, lm_head, flash)
                if (path / "config.json").is_file():
                    return path
    raise CheckpointError(_missing(model_name, w_bit, group_size, scaled, solver, lm_head))


def _default_solvers(scaled: bool) -> tuple[str, ...]:
    """Whichever way the scales were come by, searched or loaded, they are wanted where AWQ is."""
    found = (solver for awq, solver in DEFAULT_SOLVERS.items() if (awq != "none") == scaled)
    return tuple(dict.fromkeys(found))


def _missing(
    model_name: str, w_bit: int, group_size: int | None, scaled: bool, solver: str | None, lm_head: bool
) -> str:
    there = sorted(path.parent.name for path in MODELS.glob("[!.]*/config.json"))
    have = f"{MODELS}/ has {', '.join(there)}" if there else f"{MODELS}/ has none"
    method = solver or _default_solvers(scaled)[0]
    wanted = checkpoint_name(model_slug(model_name), w_bit, group_size or "*", scaled, method, lm_head, False)
    make = f"run_awq.py --task quantize --model_name {shlex.quote(model_name)} --w_bit {w_bit}"
    make += f" --group_size {group_size}" * bool(group_size) + " --awq none" * (not scaled)
    make += f" --solver {solver}" * bool(solver) + " --lm_head" * lm_head
    return f"no checkpoint {MODELS / wanted}; {have}; make it with: {make}"
