"""What a checkpoint of another program writes here, beside what it writes there."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.interop.checkpoints import COUNT, PROMPTS, answered, last_logits
from benchmarks.interop.trying import agreement


@dataclass(frozen=True)
class Compared:
    """After one prompt. same: how many tokens are alike before one is not; margin: by how much the logit of a token led
    here, at the least; lead: by how much the token here led theirs where they part, None where they do not.
    """

    same: int
    margin: float
    lead: float | None


def compare(model, theirs: Sequence[Sequence[int]]) -> list[Compared]:
    """theirs: what the other program writes after each of the prompts."""
    found = []
    for prompt, tokens in zip(PROMPTS, theirs, strict=True):
        ours = answered(model, prompt)
        same, lead = agreement(ours.tokens, tokens), None
        if same < COUNT:
            logits = last_logits(model, ours.ids + ours.tokens[:same])
            lead = float(logits[ours.tokens[same]] - logits[tokens[same]])
        found.append(Compared(same, ours.margin, lead))
    return found


def tell(found: Sequence[Compared]) -> str:
    """By the rule of the page: the prompt that is answered with the largest lead decides. The others are told too."""
    first = max(found, key=lambda each: each.margin)
    word = "same tokens" if first.same == COUNT else f"the first {first.same} of {COUNT} tokens are the same"
    leads = [each.lead for each in found if each.lead is not None]
    if not leads:
        return f"{word} after all {len(found)} prompts"
    told = " and ".join(f"{lead:.2f}" for lead in leads)
    return f"{word}; {len(leads)} of {len(found)} prompts part where theirs is behind here by {told}"
