"""What is opened: SmolLM2, plainly rounded in every way that a row of the table names, and what it writes here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.formats.names import GGUF_FLOATS
from run_awq import Recipe, export, load, quantize

MODEL, COUNT = "smollm2-135m-instruct", 16
# name -> what of the recipe is not the default.
RECIPES = {
    "w4": {},
    "w4 --lm_head": {"lm_head": True},
    "w4 symmetric": {"symmetric": True},
    "w3": {"w_bit": 3},
}
# name -> (checkpoint, format).
EXPORTS = {
    "w4 as awq": ("w4", "awq"),
    "w4 --lm_head as awq": ("w4 --lm_head", "awq"),
    "w4 as gptq": ("w4", "gptq"),
    "w4 symmetric as gptq": ("w4 symmetric", "gptq"),
    "w4 as gguf": ("w4", "gguf"),
    "w4 as gguf-f16": ("w4", "gguf-f16"),
    "w4 --lm_head as gguf": ("w4 --lm_head", "gguf"),
    "w4 symmetric as gguf": ("w4 symmetric", "gguf"),
    "w3 as gguf": ("w3", "gguf"),
}
# Of these, each checkpoint is asked the one that it answers with the least doubt: other programs round activations to
# other types, and where two tokens are as good as equal that decides.
PROMPTS = (
    "What is a poem?",
    "The alphabet begins with the letters A, B, C,",
    "Write the numbers from one to ten.",
    "What is the capital of France?",
)


@dataclass(frozen=True)
class Reference:
    """What a checkpoint writes here. ids: of the prompt; margin: by how much the logit of a token led, at the least."""

    prompt: str
    ids: list[int]
    tokens: list[int]
    margin: float


def make(name: str, folder: Path) -> Path:
    """The checkpoint of that name, made unless it is there."""
    file = ".gguf" * (name in EXPORTS and EXPORTS[name][1] in GGUF_FLOATS)
    place = folder / (name.replace(" ", "-").replace("--", "") + file)
    if place.exists():
        return place
    if name in EXPORTS:
        of, format = EXPORTS[name]
        export(make(of, folder), place, format)
    else:
        quantize(MODEL, place, Recipe(**{"awq": "none", "solver": "rtn"} | RECIPES[name]))
    return place


def refer(directory: Path, prompts: Sequence[str] = PROMPTS) -> Reference:
    model = load(directory)
    found = [answered(model, prompt) for prompt in prompts]
    return max(found, key=lambda reference: reference.margin)


def answered(model, prompt: str) -> Reference:
    """What an opened checkpoint writes greedily after a prompt."""
    ids = [int(token) for token in model.tokenizer(prompt)["input_ids"]]
    known, margins = list(ids), []
    for _ in range(COUNT):
        last = last_logits(model, known)
        first, second = last.topk(2).values.tolist()
        margins.append(first - second)
        known.append(int(last.argmax()))
    return Reference(prompt, ids, known[len(ids) :], min(margins))


def last_logits(model, known: list[int]) -> Tensor:
    """`(vocabulary,)`: of what follows these tokens."""
    return torch.as_tensor(model.logits(known)).reshape(-1, model.vocabulary)[-1]
