"""Scales files for tiny models, and the part of each block in one."""

import torch

from architectures.linears import block_linears
from architectures.registry import find_family
from scales import fold, zoo
from scales.zoo import ScaleFile

GROUP = 32


def blocks_of(model) -> dict[str, torch.nn.Module]:
    names = find_family(model.config).block_names(model)
    return {name: model.get_submodule(name) for name in names}


def file_for(model, group_size: int = GROUP) -> ScaleFile:
    """A file that scales every edge and clips every linear that may be clipped, as llm-awq would write it."""
    family, file = find_family(model.config), ScaleFile()
    for unit, block in blocks_of(model).items():
        for edge in family.edges:
            vector = torch.rand(fold.scale_length(block, edge, model.config)) + 0.5
            file.scales.append((f"{unit}.{edge.prev}", tuple(f"{unit}.{name}" for name in edge.layers), vector))
        for name, linear in block_linears(block).items():
            if name not in family.unclipped:
                clips = torch.rand(linear.out_features, linear.in_features // group_size, 1)
                file.clips.append((f"{unit}.{name}", clips))
    return file


def by_block(file: ScaleFile, model, group_size: int = GROUP):
    linears, blocks, edges = block_linears(model), blocks_of(model), find_family(model.config).edges
    return zoo.by_block(
        file,
        dict.fromkeys(blocks, edges),
        lambda name: (linears[name].out_features, linears[name].in_features),
        lambda index, edge: fold.scale_length(list(blocks.values())[index], edge, model.config),
        lambda name: group_size,
    )


def assert_one_line(error) -> None:
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
