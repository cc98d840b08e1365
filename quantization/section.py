"""What config.json says of a checkpoint's weights."""

from collections.abc import Collection

from torch import nn

from checkpoints.formats.compressed_tensors import mixed_section, quantization_section
from checkpoints.formats.in_bytes import described
from quantization.plan import Job


def section_of(job: Job, quantized: Collection[str]) -> dict:
    """quantized: the model's names of the linears that are."""
    linears = (name for name, module in job.source.model.named_modules() if isinstance(module, nn.Linear))
    kept = [name for name in linears if name not in quantized]
    if job.grids:
        section = mixed_section({job.source.linear_in_files(name): job.grids[name] for name in quantized}, kept)
    else:
        head = (job.plan.head, job.head_grid.group_size) if job.recipe.lm_head else None
        section = quantization_section(job.grid, head, kept)
    if job.in_bytes is not None:
        name = job.source.name_in_files(job.in_bytes).removesuffix(".weight")
        groups = section["config_groups"]
        groups[f"group_{len(groups)}"] = described([name], job.byte_group_size)
    return section
