"""Calibration tokens that the model writes itself, for want of a text: samples from random first tokens.

Data-free calibration after LLM-QAT (Liu et al., arXiv 2305.17888), which draws its training text in this way.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TEMPERATURE = 0.8
# Rows written at a time: their keys and values are held besides the model.
BATCH = 32


def ordinary_tokens(tokenizer, vocab_size: int) -> Tensor:
    """Ids below `vocab_size` that stand for text: neither special tokens nor the padding of an embedding, `(n,)`."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    known = set(tokenizer.get_vocab().values()) - special
    return torch.tensor(sorted(number for number in known if number < vocab_size))


def self_samples(
    model: nn.Module,
    ordinary: Tensor,
    n_samples: int,
    seqlen: int,
    seed: int,
    bos: int | None = None,
) -> Tensor:
    """`(n_samples, seqlen)` int64 tokens of the model's own, the same for the same `seed`.

    model: a causal LM of `transformers` with all of its weights. ordinary: the ids `(n,)` a text may consist of, from
    which its first token is drawn evenly; as no other is drawn later, no text ends early. bos: the token for the
    beginning of a text, before the first of each; None: there is none. torch's global generator is left as it was.
    """
    outside = torch.ones(model.config.get_text_config().vocab_size, dtype=torch.bool)
    outside[ordinary] = False
    shortest = 2 if bos is None else 3  # generate has to add something
    settings = _settings(max(seqlen, shortest), outside.nonzero().flatten().tolist())
    rows: list[Tensor] = []
    with _seeded(seed), _generating(model, settings), torch.no_grad():
        first = ordinary[torch.randint(len(ordinary), (n_samples, 1))]
        if bos is not None:
            first = torch.cat([torch.full_like(first, bos), first], dim=1)
        for batch in first.split(BATCH):
            rows.append(model.generate(batch, attention_mask=torch.ones_like(batch))[:, :seqlen])
    return torch.cat(rows)


def _settings(seqlen: int, suppressed: list[int]):
    """Plain sampling from the whole distribution."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        max_length=seqlen,
        min_length=seqlen,
        suppress_tokens=suppressed or None,
        eos_token_id=None,
        pad_token_id=0,
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """`generate` draws from the global generator only: lend it a seed, and give it its state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _generating(model: nn.Module, settings) -> Iterator[None]:
    """Put `settings` in the place of the model's own, which would fill in all that they leave open."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
