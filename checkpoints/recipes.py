"""What a checkpoint says of how it was made."""

import json
from pathlib import Path

RECIPE = "awq_recipe.json"
# What of a recipe is read again.
KINDS = {
    "fingerprint": str, "files_fingerprint": str, "options": dict, "versions": dict, "files": list,
    "proof": str,
}  # fmt: skip


def read_recipe(directory: Path) -> dict:
    """How a checkpoint was made, without what is of no kind that it should be; {} where that is not known."""
    try:
        recipe = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(recipe, dict):
        return {}
    return {name: value for name, value in recipe.items() if isinstance(value, KINDS.get(name, object))}


def asked_for_flash(recipe: dict) -> bool:
    """What `flash_attention` was set to when the checkpoint was made; True where it was left to its default."""
    return recipe.get("options", {}).get("flash_attention") is not False
