"""Fields of configurations."""

from typing import Any


def of_all_layers(config: Any, field: str, default: Any = None) -> Any:
    """What a configuration says of all layers; the default where it says nothing, or of each layer something else.

    Those of transformers refuse the second by an error of their own (Gemma 4 has layers with other numbers of heads).
    """
    try:
        return getattr(config, field, default)
    except RuntimeError:
        return default
