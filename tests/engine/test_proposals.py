"""A smaller model as what proposes: its own greedy tokens, from a cache that follows the text."""

from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from engine.decoder import read_last
from engine.generate import generate
from engine.proposals import ModelProposer, check_same_tokens
from engine.whole import fused_decoder
from qlinear.backends.cpu import native
from qlinear.errors import OptionError
from tests.engine.drafts import always
from tests.engine.fusing import quantized_on, tokens_of
from tests.quantized import word_tokenizer
from tests.tiny import VOCAB

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


class Spy:
    """A decoder that checks that what it is said to know it has read, and counts what it reads."""

    def __init__(self, decoder):
        self.decoder, self.text, self.reads = decoder, [], []
        self.max_tokens, self.vocabulary = decoder.max_tokens, decoder.vocabulary

    def read(self, tokens, known=0, rows=None):
        assert tokens[:known].tolist() == self.text[:known]
        self.text = tokens.tolist()
        self.reads.append(len(tokens) - known)
        return self.decoder.read(tokens, known, rows)


def fused(bits=4, max_tokens=64, kind="llama"):
    from qlinear.backends.cpu.backend import CpuBackend

    return fused_decoder(quantized_on(CpuBackend(), kind, bits)[0], CpuBackend(), max_tokens)[0]


def greedily(decoder, text, count):
    """What it writes, each token from the whole text anew."""
    text = text.tolist()
    for _ in range(count):
        text.append(int(read_last(decoder, np.array(text)).argmax()))
    return text[-count:]


def test_what_the_other_model_finds_likeliest():
    spy, alone = Spy(fused(3)), fused(3)
    proposer, text = ModelProposer(spy, VOCAB), tokens_of(20).numpy()
    expected = greedily(alone, text, 5)
    assert proposer.find(text) == 0 and proposer.propose(text, 5).tolist() == expected
    assert spy.reads == [20, 1, 1, 1, 1]
    for taken in (5, 2, 0):  # of the five, and a token of the model's own after them
        spy.reads.clear()
        after = np.concatenate([text, expected[:taken], [9]])
        assert proposer.propose(after, 3).tolist() == greedily(alone, after, 3)
        assert spy.reads == [2 if taken == 5 else 1, 1, 1]
        proposer.propose(text, 5)
    other = tokens_of(12, seed=4).numpy()
    assert proposer.propose(other, 2).tolist() == greedily(alone, other, 2)


def test_it_catches_up_with_what_it_has_missed():
    spy, text = Spy(fused(3)), tokens_of(40).numpy()
    proposer, expected = ModelProposer(spy, VOCAB), greedily(fused(3), text, 2)
    assert proposer.behind(text) == 39
    proposer.catch_up(text)
    assert (spy.reads, proposer.behind(text)) == ([39], 0)
    assert proposer.propose(text, 2).tolist() == expected and spy.reads == [39, 1, 1]
    other = np.concatenate([text[:20], tokens_of(12, seed=4).numpy()])
    assert proposer.behind(other) == 31 - 20
    proposer.catch_up(other)
    assert proposer.propose(other, 1).tolist() == greedily(fused(3), other, 1) and spy.reads[3:] == [11, 1]


def test_no_further_than_its_own_context():
    proposer, text = ModelProposer(fused(3, 22), VOCAB), tokens_of(22).numpy()
    assert len(proposer.propose(text[:20], 9)) == 3 and len(proposer.propose(text, 9)) == 1
    assert proposer.find(text) == 0 and proposer.find(np.append(text, 3)) is None


def test_only_tokens_that_the_model_has():
    decoder, text = fused(3), tokens_of(20).numpy()
    likeliest = greedily(decoder, text, 1)[0]
    assert ModelProposer(decoder, likeliest + 1).propose(text, 1).tolist() == [likeliest]
    rows = read_last(decoder, text)[:likeliest]
    expected = int(rows.argmax())
    assert ModelProposer(decoder, likeliest).propose(text, 1).tolist() == [expected]


def test_nothing_is_taken_for_read_after_an_interrupt():
    class Interrupted(Spy):
        def read(self, tokens, known=0, rows=None):
            if len(tokens) == self.at:
                self.text = []
                raise KeyboardInterrupt
            return super().read(tokens, known, rows)

    spy, text = Interrupted(fused(3)), tokens_of(20).numpy()
    proposer, expected = ModelProposer(spy, VOCAB), greedily(fused(3), text, 2)
    for at, call in ((22, lambda: proposer.propose(text, 5)), (18, lambda: proposer.catch_up(text[:19]))):
        spy.at = None
        proposer.propose(text[:12], 3)
        spy.at = at
        with pytest.raises(KeyboardInterrupt):
            call()
        spy.at = None
        assert proposer.propose(text, 2).tolist() == expected


def test_the_model_as_its_own_draft_is_always_right():
    model, prompt = fused(4), tokens_of(10).numpy()
    plain = [token.id for token in generate(model, prompt, 30)]
    for bits, right in ((4, True), (3, False)):
        draft, _ = always(4, ModelProposer(fused(bits), VOCAB))
        drafting = draft.for_text()
        assert [token.id for token in generate(model, prompt, 30, drafting=drafting)] == plain
        figures = drafting.drafted
        assert (figures.accepted == figures.proposed) is right and figures.proposed > 0


def test_tokenizers_that_differ():
    own = word_tokenizer()
    check_same_tokens(own, word_tokenizer(), "other")
    check_same_tokens(own, SimpleNamespace(get_vocab=own.get_vocab), "other")  # of no library's own kind
    vocabulary = own.get_vocab()
    for changed, message in (
        ({"w3": 4, "w4": 3}, "only this model has 'w3' as token 3"),
        ({"w127": None}, "only this model has 'w127' as token 127"),
        ({"w128": 128}, "only the other has 'w128' as token 128"),
    ):
        words = {word: token for word, token in (vocabulary | changed).items() if token is not None}
        other = SimpleNamespace(backend_tokenizer=Tokenizer(models.WordLevel(words, unk_token="<pad>")))
        with pytest.raises(OptionError) as error:
            check_same_tokens(own, other, "q")
        begin = f"`draft=q` has another tokenizer than this model: {message}; give a checkpoint"
        assert str(error.value).startswith(begin)


def test_nothing_is_proposed_for_tokens_that_the_smaller_model_has_no_rows_for():
    """A tokenizer may be the same where one embedding has more rows than the other."""
    proposer = ModelProposer(SimpleNamespace(max_tokens=4, vocabulary=5), 8)
    assert proposer.find(np.array([1, 4])) == 0
    assert proposer.find(np.array([1, 5])) is None and proposer.find(np.arange(5)) is None
