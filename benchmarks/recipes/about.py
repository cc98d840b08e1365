"""What a float model is that recipes are compared on, as its files have it."""

from collections import Counter
from pathlib import Path


def about(model_name: str) -> str:
    """A line or two. Raises `ModelError` where it cannot be opened."""
    from checkpoints.formats.gguf import read_header
    from checkpoints.pretrained import open_pretrained

    source = open_pretrained(model_name, False)
    million = source.float_bytes / 2 / 1e6
    files = [file for file in source.files if file.suffix == ".gguf"]
    if not files:
        return f"{million:.0f} million weights, of its own files."
    stored: Counter[str] = Counter()
    for entry in read_header(files[0])[1].values():
        stored[kind_name(entry.kind)] += entry.size
    whole = sum(stored.values())
    kinds = ", ".join(f"{name} {size / whole:.0%}" for name, size in stored.most_common() if size >= 0.005 * whole)
    return (
        f"{million:.0f} million weights. What is called the float model here is itself a quantized file, "
        f"`{files[0].name}` ({kinds} of its bytes), dequantized: what that has lost against the model it was made from "
        "is not in the table, and its weights lie on grids already, of which no recipe is told. Read the table for how "
        "recipes compare, not for what a model of 16 bits would lose."
    )


def kind_name(kind: int) -> str:
    import gguf

    return gguf.GGMLQuantizationType(kind).name


def shown(model_name: str) -> str:
    """The name that a model has in the table."""
    return Path(model_name).name
