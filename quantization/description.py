"""What goes into a checkpoint beside the weights."""

from checkpoints.beside import find_beside
from checkpoints.tokenizers import template_fault
from checkpoints.writer import Description
from qlinear.progress import Note
from quantization.plan import Job


def describe(job: Job, trust_remote_code: bool) -> Description:
    """Of the model that is quantized; it is told what does not go into it, though it lies there to be taken."""
    source = job.source
    beside = find_beside(source.directory) if source.directory else None
    for left in beside.left if beside else ():
        job.watch(Note(f"left out of the checkpoint: {left}"))
    if source.left:
        example = f"such as {source.left[0]}, in {len(source.left)} tensors"
        job.watch(Note(f"left out of the checkpoint: weights that transformers has no place for, {example}"))
    fault = template_fault(source.tokenizer)
    if fault is not None:
        job.watch(Note(f"`chat` is not going to work: the model's chat template is not understood ({fault})"))
    return Description(source.config, source.generation_config, source.tokenizer, beside, trust_remote_code)
