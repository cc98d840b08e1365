"""Log-likelihoods and divergences against float64 softmaxes of whole forwards."""

import pytest
import torch

from qlinear.decoder import ModuleDecoder
from qlinear.scoring import Scorer, compare
from tests.tiny import VOCAB, tiny_model, tiny_tokens


class Table:
    """A decoder whose logits are given, for texts of one length, and come in parts of `part` rows."""

    def __init__(self, logits: torch.Tensor, part: int):
        self.logits, self.part = logits, part

    def read(self, tokens, known=0):
        yield from self.logits[known : len(tokens)].split(self.part)


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.double()
    return logits - logits.exp().sum(dim=-1, keepdim=True).log()


def test_continuations_after_contexts_that_share_more_and_less():
    model = tiny_model("llama")
    scorer = Scorer(ModuleDecoder(model, 64, static_cache=False))
    a, b = tiny_tokens(2, 40).tolist()
    pairs = [(a[:20], a[20:30]), (a[:20], b[:3]), (a[:20] + b[:3], b[3:4]), (b[:7], a[:5]), (b[:7], a[:5]), (a[:1], b)]
    for context, continuation in pairs:
        whole = torch.tensor([*context, *continuation])
        with torch.no_grad():
            logits = model(whole.unsqueeze(0)).logits[0]
        after = log_softmax(logits)[len(context) - 1 : -1]
        expected = sum(row[token].item() for row, token in zip(after, continuation, strict=True))
        found, greedy = scorer.log_likelihood(context, continuation)
        assert found == pytest.approx(expected, abs=1e-4)
        assert greedy == (after.argmax(dim=-1).tolist() == continuation)


@pytest.mark.parametrize(("length", "parts"), [(2, (1, 5)), (65, (64, 7)), (200, (150, 66)), (130, (200, 200))])
def test_a_greedy_continuation_is_seen_wherever_the_parts_end(length, parts):
    logits = torch.randn(length, VOCAB, generator=torch.Generator().manual_seed(length))
    best = logits.argmax(dim=-1).tolist()
    expected = log_softmax(logits)
    for part in parts:
        context = list(range(length // 2))
        continuation = best[len(context) - 1 :]
        found, greedy = Scorer(Table(logits, part)).log_likelihood(context or [0], continuation)
        first = max(len(context), 1) - 1
        assert greedy and found == pytest.approx(expected[first:].max(dim=-1).values.sum().item(), rel=1e-5)


@pytest.mark.parametrize(("length", "parts"), [(2, (1, 5)), (65, (64, 7)), (200, (150, 66)), (130, (200, 200))])
def test_comparison(length, parts):
    """However the rows of the two come in parts; the row after the last token counts for nothing."""
    generator = torch.Generator().manual_seed(length)
    ours, wanted = torch.randn(2, length, VOCAB, generator=generator) * 3
    ours = wanted + ours / 6
    tokens = torch.randint(0, VOCAB, (length,), generator=generator)
    found = compare(Table(ours, parts[0]), Table(wanted, parts[1]), tokens)
    log_q, log_p = log_softmax(ours)[:-1], log_softmax(wanted)[:-1]
    targets = tokens[1:].tolist()
    for value, log in ((found.nll, log_q), (found.reference_nll, log_p)):
        expected = -sum(row[token].item() for row, token in zip(log, targets, strict=True)) / len(targets)
        assert value == pytest.approx(expected, rel=1e-6)
    assert found.divergence == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item() / len(targets), rel=1e-4)
    agreed = [p.argmax() == q.argmax() for p, q in zip(log_p, log_q, strict=True)]
    assert found.agreement == pytest.approx(sum(map(int, agreed)) / len(targets))
    same = compare(Table(wanted, parts[0]), Table(wanted, parts[1]), tokens)
    assert same.divergence == pytest.approx(0, abs=1e-6) and same.agreement == 1
