"""What programs of yesterday look for in a checkpoint, beside what transformers 5 writes for today's.

transformers 4.57 and others take a model's rotary base from `rope_theta` and its scaling from `rope_scaling`, at the
top of config.json, and 10000 where there is none; they know no tokenizer of class TokenizersBackend; they call `dtype`
`torch_dtype`, and count the experts of every family as `num_experts`, mixtral's aside. All of it is added, and nothing
taken away.
"""

import json
from pathlib import Path
from typing import Any

# What transformers 5 calls a tokenizer that tokenizer.json alone describes, and what it has been called before.
BACKEND, FAST = "TokenizersBackend", "PreTrainedTokenizerFast"


def rewrite(directory: Path) -> None:
    """Add to the files of a directory. Raises `OSError`."""
    _edit(directory / "config.json", lambda config: _with_experts(_with_rope(config)))
    if (directory / "tokenizer.json").is_file():
        _edit(directory / "tokenizer_config.json", _with_known_class)


def _edit(path: Path, change) -> None:
    if not path.is_file():
        return
    described = json.loads(path.read_text(encoding="utf-8"))
    changed = change(described)
    if changed != described:
        path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _with_rope(config: dict[str, Any]) -> dict[str, Any]:
    """With the rotary parameters where they are flat: of one kind for all layers."""
    added = {"torch_dtype": config["dtype"]} if isinstance(config.get("dtype"), str) else {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and isinstance(rope.get("rope_theta"), int | float):
        added["rope_theta"] = rope["rope_theta"]
        if "partial_rotary_factor" in rope:
            added["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if rope.get("rope_type", "default") != "default":
            scaling = {name: value for name, value in rope.items() if name not in added}
            added["rope_scaling"] = scaling
    return added | config


def _with_experts(config: dict[str, Any]) -> dict[str, Any]:
    return {"num_experts": config["num_local_experts"]} | config if "num_local_experts" in config else config


def _with_known_class(tokenizer: dict[str, Any]) -> dict[str, Any]:
    return tokenizer | {"tokenizer_class": FAST} if tokenizer.get("tokenizer_class") == BACKEND else tokenizer
