"""Log-likelihoods and divergences against float64 softmaxes of whole forwards."""

import math

import pytest
import torch

from engine.modules import ModuleDecoder
from engine.scoring import Scorer, compare, cut_windows, negative_log_likelihood, perplexity
from qlinear.errors import OptionError
from tests.reading import ids
from tests.tiny import VOCAB, tiny_model, tiny_tokens


class Table:
    """A decoder whose logits are given, for texts of one length, and come in parts of `part` rows."""

    def __init__(self, logits: torch.Tensor, part: int):
        self.logits, self.part = logits, part

    def read(self, tokens, known=0, rows=None):
        first = known if rows is None else len(tokens) - rows
        yield from (part.numpy() for part in self.logits[first : len(tokens)].split(self.part))


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
    found = compare(Table(ours, parts[0]), Table(wanted, parts[1]), ids(tokens))
    log_q, log_p = log_softmax(ours)[:-1], log_softmax(wanted)[:-1]
    targets = tokens[1:].tolist()
    for value, log in ((found.nll, log_q), (found.reference_nll, log_p)):
        expected = -sum(row[token].item() for row, token in zip(log, targets, strict=True)) / len(targets)
        assert value == pytest.approx(expected, rel=1e-6)
    assert found.divergence == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item() / len(targets), rel=1e-4)
    agreed = [p.argmax() == q.argmax() for p, q in zip(log_p, log_q, strict=True)]
    assert found.agreement == pytest.approx(sum(map(int, agreed)) / len(targets))
    same = compare(Table(wanted, parts[0]), Table(wanted, parts[1]), ids(tokens))
    assert same.divergence == pytest.approx(0, abs=1e-6) and same.agreement == 1


@pytest.mark.parametrize(("length", "parts"), [(1, (1, 4)), (2, (1, 5)), (65, (64, 7, 65)), (200, (150, 1, 300))])
def test_negative_log_likelihood(length, parts):
    """However the rows come in parts; the first token is not predicted, and the last predicts nothing."""
    generator = torch.Generator().manual_seed(length)
    logits = torch.randn(length, VOCAB, generator=generator) * 4
    tokens = torch.randint(0, VOCAB, (length,), generator=generator)
    predicted = zip(log_softmax(logits)[:-1], tokens[1:].tolist(), strict=True)
    expected = -sum(row[token].item() for row, token in predicted)
    for part in parts:
        assert negative_log_likelihood(Table(logits, part), ids(tokens)) == pytest.approx(expected, rel=1e-6)


def test_windows_and_the_perplexity_of_them():
    tokens = ids(range(23))
    assert cut_windows(tokens, 5, None, "it").tolist() == [list(range(at, at + 5)) for at in (0, 5, 10, 15)]
    assert cut_windows(tokens, 5, 2, "it").tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert perplexity(12 * math.log(7), cut_windows(tokens, 5, 3, "it")) == pytest.approx(7)  # 12 tokens are predicted
    with pytest.raises(OptionError, match="^it has 23 tokens, less than one `window` of 24; use a smaller one$"):
        cut_windows(tokens, 24, None, "it")
    with pytest.raises(OptionError, match="^`n_windows=5`: it has only 4 windows of 5 tokens; use fewer$"):
        cut_windows(tokens, 5, 5, "it")
    for window in (1, 0, -5):
        with pytest.raises(OptionError, match=f"^`window={window}` has to be at least 2"):
            cut_windows(tokens, window, None, "it")
    for count in (0, -1):
        with pytest.raises(OptionError, match=f"^`n_windows={count}` has to be a whole number from 1 up"):
            cut_windows(tokens, 5, count, "it")
