"""Conversations and batches with proposals: what is said, kept and read is what it is without."""

import threading

import numpy as np
import pytest

from engine.batching import Asked, Batch
from engine.conversation import Conversation, Limits
from engine.model import About, Model
from engine.rules import PlainRules
from engine.sampling import sampler
from engine.stopping import Ended
from engine.whole import ModuleRunner
from qlinear.backends.cpu import native
from qlinear.errors import ModelError, OptionError
from qlinear.progress import silent
from tests.engine.drafts import Always, Knowing, always
from tests.engine.fusing import quantized_on, tokens_of
from tests.engine.test_batching import Heard
from tests.quantized import word_tokenizer
from tests.tiny import VOCAB

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

ROOM = 128
TEMPLATE = "{% for m in messages %}w11 {{ m.content }} w13 {% endfor %}{% if add_generation_prompt %}w12{% endif %}"
PROMPTS = ("w50 w51 w50 w51 w50", "w60", "w70 w51 w50")


@pytest.fixture(scope="module")
def runner():
    from qlinear.backends.cpu.backend import CpuBackend

    backend = CpuBackend()
    return ModuleRunner(quantized_on(backend, "qwen3")[0], backend, flash_attention=True)


def model_of(runner, draft):
    """draft: tokens proposed a pass, as many as may be; 0 for no draft."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model = Model(About("tiny", "cpu", "w4abf16", 0), runner, tokenizer, silent)
    if draft:
        model.propose_by_lookup()
        model._worth = Always(draft)
    return model


class Spy:
    """A decoder that checks that what it is said to know it has read."""

    def __init__(self, decoder):
        self.decoder, self.text = decoder, []
        self.max_tokens, self.vocabulary = decoder.max_tokens, decoder.vocabulary

    def read(self, tokens, known=0, rows=None):
        assert tokens[:known].tolist() == self.text[:known]
        self.text = tokens.tolist()
        return self.decoder.read(tokens, known, rows)


def conversation(runner, draft, stop=(), most=24, hear=None, **draw):
    """Its turns without their times, its messages, and how much it has read before each."""
    model = model_of(runner, draft)
    talk = Conversation(model, ROOM, sampler(seed=5, **draw) if draw else np.argmax)
    talk.decoder = Spy(talk.decoder)
    turns, drafted = [], []
    for prompt in PROMPTS:
        reply = talk.reply(prompt, Limits(most, stop))
        pieces = [piece for _, piece in zip(range(hear or 10**6), reply, strict=False)]
        turn = reply.end()
        drafted.append(turn.draft)
        turns.append((pieces, turn.response, turn.prompt_tokens, turn.read_tokens, turn.new_tokens, turn.ended))
    return (turns, talk.messages, talk.read, talk.known), drafted


@pytest.mark.parametrize("draw", [{}, dict(temperature=0.5)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("stop", [(), ("w50 w5",), ("w99", "w3 ", " w7")], ids=["end", "stop", "stops"])
@pytest.mark.parametrize("hear", [None, 5], ids=["all", "interrupted"])
def test_a_conversation_is_the_same(runner, draw, stop, hear):
    plain, none = conversation(runner, 0, stop, hear=hear, **draw)
    assert none == [None] * 3
    for count in (2, 7):
        found, drafted = conversation(runner, count, stop, hear=hear, **draw)
        assert found == plain
        for one, turn in zip(drafted, found[0], strict=True):
            assert one.passes <= turn[4] - 1 or one.passes == 0
    if not hear and not stop and not draw:
        assert sum(one.accepted for one in drafted) > 0


def test_what_stops_within_an_accepted_run(runner):
    """A stop text that is complete in the middle of a pass: the tokens after it were never chosen."""
    (turns, *_), _ = conversation(runner, 0)
    words = turns[0][1].split()
    stop = (f"{words[3]} {words[4]}",)
    (plain, *_), _ = conversation(runner, 0, stop)
    (found, *_), drafted = conversation(runner, 7, stop)
    assert plain == found and plain[0][5] is Ended.STOP and plain[0][4] < 24


def test_modules_are_refused(runner):
    modules = ModuleRunner(runner.module, runner._backend, flash_attention=False)
    model = model_of(modules, 3)
    for decoder in (model.decoder(32), model.slots(32, 2)):
        with pytest.raises(OptionError, match="run as a whole on the cpu.*that of tiny is not: leave `draft` out$"):
            model.draft(decoder)
    assert model_of(modules, 0).draft(model.decoder(32)) is None
    with pytest.raises(OptionError, match="leave `draft` out"):
        next(model.stream("w3 w4"))


def texts(count=4, most=30, **draw):
    made = []
    for seed in range(count):
        begin = np.tile(tokens_of(5, seed).numpy(), 4)
        choose = sampler(seed=seed, **draw) if draw else np.argmax
        rules = PlainRules({"repetition_penalty": 1.05}).for_text(20, most)
        made.append(Asked(begin, most, frozenset({9}), lambda row, choose=choose: int(choose(row)), rules))
    return made


def batched(runner, draft, asked, slots=1, at_once=False):
    """(tokens, how it ended, what they were chosen from) of each, one after the other or all at once."""
    batch = Batch(runner.slots(ROOM, slots, print), 100, draft)
    heard = [Hears() for _ in asked]
    for one, listener in zip(asked, heard, strict=True):
        batch.add(one, listener)
        if not at_once:
            listener.wait()
    found = [(one.wait().tokens, one.how, one.rows) for one in heard]
    batch.close()
    return found, batch.counts


class Hears(Heard):
    def __init__(self, most=10**9):
        super().__init__(most)
        self.rows = []

    def wrote(self, token, logits):
        self.rows.append(logits.tobytes())
        return super().wrote(token, logits)


@pytest.mark.parametrize("draw", [{}, dict(temperature=0.8)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_batch_writes_the_same(runner, draw, slots):
    plain, _ = batched(runner, None, texts(**draw), slots)
    for count in (1, 7):
        draft, policy = always(count)
        found, counts = batched(runner, draft, texts(**draw), slots)
        assert found == plain
        assert counts.drafted.proposed == sum(policy.passes) > 0
        assert counts.written == sum(len(tokens) for tokens, _, _ in found)
        assert counts.drafted.passes == len(policy.passes) < counts.steps
    for one, (tokens, how, rows) in zip(texts(**draw), plain, strict=True):
        knowing = Knowing(np.concatenate([one.prompt, tokens]), 4)
        found, counts = batched(runner, always(5, knowing)[0], [one], slots)
        assert found == [(tokens, how, rows)]
        assert counts.drafted.accepted > 0


def test_several_at_once_go_as_they_do(runner):
    """All begin before any is written: proposals are for the one that is left."""
    plain, _ = batched(runner, None, texts(3), 3)
    draft, policy = always(7)
    release, held = threading.Event(), Asked(tokens_of(5, 77).numpy(), 1, choose=lambda row: release.wait(20) and 3)
    batch, first = Batch(runner.slots(ROOM, 4, print), 100, draft), Hears()
    batch.add(held, first)
    heard = [Hears() for _ in range(3)]
    for one, listener in zip(texts(3), heard, strict=True):
        batch.add(one, listener)
    release.set()
    found = [(one.wait().tokens, one.how, one.rows) for one in heard]
    batch.close()
    assert found == plain
    longest = sorted(len(tokens) for tokens, _, _ in found)
    assert len(policy.passes) <= longest[-1] - longest[-2] + 2  # but for the steps in which others still come


def test_how_a_text_ends_within_an_accepted_run(runner):
    (one,) = texts(1, 40)
    ((whole, _, _),), _ = batched(runner, None, [Asked(one.prompt, 40)])
    knowing = Knowing(np.concatenate([one.prompt, whole]))
    late = next(token for at, token in enumerate(whole) if at > 3 and token not in whole[:at])
    for asked, listener, how in (
        (Asked(one.prompt, 7), Heard(), Ended.LENGTH),
        (Asked(one.prompt, 40), Heard(4), Ended.STOP),
        (Asked(one.prompt, 40, frozenset({late})), Heard(), Ended.END),
        (Asked(np.concatenate([tokens_of(ROOM - 26).numpy(), one.prompt]), 40), Heard(), Ended.CONTEXT),
    ):
        expected = Heard(listener.most)
        for draft, heard in ((None, expected), (always(7, knowing)[0], listener)):
            batch = Batch(runner.slots(ROOM, 1, print), 5, draft)
            batch.add(asked, heard)
            heard.wait()
            batch.close()
        assert (listener.tokens, listener.how) == (expected.tokens, how)
        assert listener.error is None and len(listener.tokens) >= 4


def test_what_a_slot_holds_afterwards(runner):
    """A text that goes on as the one before it was written is read from there, whatever was proposed meanwhile."""
    (one,) = texts(1, 20)
    ((whole, _, _),), _ = batched(runner, None, [Asked(one.prompt, 20)])
    lying = always(5, Knowing(np.concatenate([one.prompt, whole, [1] * 9]), 2))[0]
    longer = Asked(np.concatenate([one.prompt, whole, tokens_of(5, 3).numpy()]), 10)
    found, counts = batched(runner, lying, [Asked(one.prompt, 20), longer])
    expected, plain = batched(runner, None, [longer])
    assert found[0][0] == whole and found[1] == expected[0]
    assert 20 + 18 <= counts.known <= 20 + 19 and plain.known == 0


def test_a_proposal_that_breaks_a_row_breaks_no_answer_of_a_batch(runner):
    """Rows after the first wrong one are nobody's: what they hold is not looked at."""

    class Broken:
        slots, max_tokens, vocabulary, chunk, nbytes, same_in_any_cut = 1, ROOM, VOCAB, 16, 0, True

        def read(self, readings, out):
            out[:] = 0
            out[0, 3] = 1
            out[1:] = np.nan

    draft, _ = always(4, Knowing([7] * 60))
    batch, heard = Batch(Broken(), 4, draft), Heard()
    batch.add(Asked(np.array([1, 2]), 6), heard)
    assert heard.wait().tokens == [3] * 6 and heard.error is None
    right, failed = always(4, Knowing([3] * 60))[0], Heard()
    batch.close()
    batch = Batch(Broken(), 4, right)
    batch.add(Asked(np.array([1, 2]), 6), failed)
    assert isinstance(failed.wait().error, ModelError) and failed.tokens == [3, 3]
    batch.close()
