"""model_type -> what is known of it. A family is one file in `families/`; nothing else has to know of it."""

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from architectures import families
from architectures.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


@cache
def all_families() -> dict[str, Family]:
    """Every family by its model type: the `FAMILIES` of each file."""
    modules = [importlib.import_module(f"{families.__name__}.{module.name}")
               for module in pkgutil.iter_modules(families.__path__)]  # fmt: skip
    return {family.model_type: family for module in modules for family in module.FAMILIES}


def find_family(config: "Config") -> Family | None:
    """What is known of models of this config, with only the edges that it has; None where nothing is."""
    family = all_families().get(config.model_type)
    return family and family.of(config)


def gguf_readers() -> dict[str, Family]:
    """The families whose GGUF files are read, by the name of their architecture there."""
    held = [family for family in all_families().values() if family.gguf is not None]
    return {family.gguf.architecture: family for family in held if family.gguf.reads}


def gguf_writers() -> dict[str, Family]:
    """The families that llama.cpp runs as transformers does, by model type."""
    return {name: family for name, family in all_families().items() if family.gguf is not None}


def fused_families() -> dict[str, Family]:
    """The families whose whole stack a decoder can run, by model type."""
    return {name: family for name, family in all_families().items() if family.fused is not None}
