"""Texts written at once are those that the model writes alone, whoever comes and goes meanwhile."""

import threading
import time

import numpy as np
import pytest

from engine.batching import Asked, Batch, Closed, Full
from engine.generate import generate
from engine.one_text import OneText
from engine.places import Places, in_common
from engine.sampling import sampler
from engine.stopping import Ended
from engine.whole import ModuleRunner
from qlinear.backends.cpu import native
from qlinear.errors import ModelError, OptionError
from tests.engine.fusing import quantized_on, tokens_of
from tests.tiny import VOCAB

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

ROOM = 128


@pytest.fixture(scope="module")
def runner():
    from qlinear.backends.cpu.backend import CpuBackend

    backend = CpuBackend()
    return ModuleRunner(quantized_on(backend, "qwen3")[0], backend, flash_attention=True)


@pytest.fixture
def batch(runner):
    made = Batch(runner.slots(ROOM, 3, print), most_waiting=100)
    yield made
    made.close()


class Heard:
    """What a listener hears. most: tokens after which it has enough."""

    def __init__(self, most=10**9):
        self.most, self.tokens, self.how, self.error = most, [], None, None
        self.done, self.begun, self.may_go_on = threading.Event(), threading.Event(), threading.Event()
        self.may_go_on.set()

    def wrote(self, token, logits):
        assert logits.shape == (VOCAB,) and np.isfinite(logits).all()
        self.tokens.append(token)
        self.begun.set()
        assert self.may_go_on.wait(20)
        return len(self.tokens) < self.most

    def ended(self, how, error):
        assert self.how is None
        self.how, self.error = how, error
        self.done.set()

    def wait(self):
        assert self.done.wait(30)
        return self


def asked(length, seed=0, most=20, **how):
    return Asked(tokens_of(length, seed).numpy(), most, **how)


def alone(runner, one, choose=None):
    """Token by token from an own decoder."""
    decoder = runner.decoder(ROOM, True, print)
    most = min(one.max_new_tokens, ROOM - len(one.prompt))
    written = generate(decoder, one.prompt, most, one.end_tokens, choose or one.choose, one.adjust)
    return [token.id for token in written]


def test_many_threads_get_what_they_would_have_had_alone(runner, batch):
    random, all_of_them = np.random.default_rng(3), []

    def client(seed):
        begin = tokens_of(30, seed % 2).numpy()  # what many have in common
        for number in range(4):
            tail = tokens_of(int(lengths[seed, number]), 100 * seed + number).numpy()
            draws = (lambda: sampler(0.9, seed=seed)) if seed % 3 == 0 else None
            one = Asked(np.concatenate([begin, tail]), int(most[seed, number]), frozenset({5, 9}))
            if draws:
                one = Asked(one.prompt, one.max_new_tokens, one.end_tokens, draws())
            heard = Heard()
            batch.add(one, heard)
            if number == 2:
                time.sleep(0.001 * seed)
            all_of_them.append((one, draws, heard.wait()))

    lengths, most = random.integers(1, 60, (6, 4)), random.integers(1, 60, (6, 4))
    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(all_of_them) == 24
    for one, draws, heard in all_of_them:
        assert heard.error is None
        assert heard.tokens == alone(runner, one, draws() if draws else None)
    assert batch.counts.known > 0 and batch.counts.steps < batch.counts.written


def test_how_a_text_ends(runner, batch):
    whole = alone(runner, asked(10, most=40))
    for one, heard, how, length in (
        (asked(10, most=7), Heard(), Ended.LENGTH, 7),
        (asked(10, most=40), Heard(3), Ended.STOP, 3),
        (asked(10, most=40, end_tokens=frozenset({whole[4]})), Heard(), Ended.END, whole.index(whole[4]) + 1),
        (asked(100, most=400), Heard(), Ended.CONTEXT, 28),
    ):
        batch.add(one, heard)
        assert (heard.wait().how, len(heard.tokens), heard.error) == (how, length, None)
        if len(one.prompt) == 10:
            assert heard.tokens == whole[:length]
    assert batch.counts.ended[Ended.LENGTH] == batch.counts.ended[Ended.CONTEXT] == 1


@pytest.mark.parametrize("chosen", [VOCAB, -1])
def test_a_token_that_there_is_not_ends_its_own_text_alone(runner, batch, chosen):
    good, bad = asked(10, most=40), asked(12, most=40, choose=lambda logits: chosen)
    heard, failed = Heard(), Heard()
    batch.add(good, heard)
    batch.add(bad, failed)
    assert (failed.wait().how, failed.tokens) == (Ended.INTERRUPTED, [])
    assert str(failed.error) == f"token {chosen} was chosen of {VOCAB}"
    assert heard.wait().tokens == alone(runner, good)


def test_what_begins_alike_is_read_once(batch):
    first = Heard()
    batch.add(asked(60, most=2), first)
    first.wait()
    read = batch.counts.read
    assert (read, batch.counts.known) == (60, 0)
    again = [Heard() for _ in range(3)]  # all at once, and there is but one slot that holds it
    for heard in again:
        batch.add(asked(60, most=30), heard)
    tokens = [heard.wait().tokens for heard in again]
    assert tokens[0] == tokens[1] == tokens[2] and tokens[0][:2] == first.tokens
    assert batch.counts.read - read == 3 and batch.counts.known == 3 * 59


def test_a_beginning_that_cannot_be_copied_ends_its_text_alone(runner, batch, monkeypatch):
    """It ended the thread, and whoever waited did so for ever."""
    one = asked(60, most=30)
    batch.add(one, first := Heard())
    first.wait()
    monkeypatch.setattr(batch.decoder, "copy", lambda *_: 1 / 0)
    again = [Heard() for _ in range(3)]
    for heard in again:
        batch.add(one, heard)
    failed = [heard for heard in again if heard.wait().error is not None]
    assert failed and all(isinstance(heard.error, ZeroDivisionError) for heard in failed)
    monkeypatch.undo()
    for _ in range(3):  # no slot was lost
        batch.add(one, heard := Heard())
        assert heard.wait().tokens == alone(runner, one)
    assert batch.running == 0 and len(batch._places._free) == 3


def test_cancelled_texts_make_room(batch):
    held, others = [Heard() for _ in range(3)], [Heard() for _ in range(4)]
    held[0].may_go_on.clear()
    texts = [batch.add(asked(5, seed, most=100), heard) for seed, heard in enumerate(held)]
    waiting = [batch.add(asked(5, 9 + seed, most=3), heard) for seed, heard in enumerate(others)]
    assert held[0].begun.wait(20)
    for text in (*texts, waiting[1]):
        text.cancel()
    held[0].may_go_on.set()
    assert [heard.wait().how for heard in held] == [Ended.INTERRUPTED] * 3
    assert [heard.wait().how for heard in others] == [Ended.LENGTH, Ended.INTERRUPTED, Ended.LENGTH, Ended.LENGTH]
    assert others[1].tokens == []


def test_a_queue_that_is_full(runner):
    batch, first = Batch(runner.slots(ROOM, 1, print), most_waiting=2), Heard()
    first.may_go_on.clear()
    batch.add(asked(5, most=3), first)
    assert first.begun.wait(20)
    more = [Heard(), Heard()]
    for heard in more:
        batch.add(asked(5, most=1), heard)
    with pytest.raises(Full, match="1 texts are being written and 2 wait"):
        batch.add(asked(5), Heard())
    first.may_go_on.set()
    assert all(heard.wait().how is Ended.LENGTH for heard in (first, *more))
    batch.close()
    with pytest.raises(Closed):
        batch.add(asked(5), Heard())


def test_closing_lets_some_end_and_ends_the_others(runner):
    class Slow(Heard):
        def wrote(self, token, logits):
            time.sleep(0.02)
            return super().wrote(token, logits)

    batch, short, long = Batch(runner.slots(ROOM, 2, print), 4), Slow(), Slow()
    batch.add(asked(5, most=3), short)
    batch.add(asked(5, most=110), long)
    batch.close(seconds=0.5)
    assert (short.how, long.how) == (Ended.LENGTH, Ended.INTERRUPTED) and 3 < len(long.tokens) < 110


def test_one_that_fails_takes_no_other_along(runner, batch):
    def fails(logits):
        raise RuntimeError("no choice")

    heard, other = Heard(), Heard()
    batch.add(asked(20, 1, most=30), other)
    batch.add(asked(20, 2, choose=fails), heard)
    assert str(heard.wait().error) == "no choice"
    assert other.wait().tokens == alone(runner, asked(20, 1, most=30)) and batch.counts.failed == 1


def test_a_listener_that_fails_at_the_end_takes_no_other_along(batch):
    """Whether its text comes to its end or is cancelled while it waits."""

    class Failing(Heard):
        def ended(self, how, error):
            super().ended(how, error)
            raise RecursionError

    failing, cancelled, other = Failing(), Failing(), Heard()
    batch.add(asked(5, most=3), failing)
    batch.add(asked(5, most=100), cancelled).cancel()
    assert failing.wait().how is Ended.LENGTH and cancelled.wait().how is Ended.INTERRUPTED
    batch.add(asked(6, 1, most=9), other)
    assert other.wait().how is Ended.LENGTH and len(other.tokens) == 9


def test_logits_that_are_not_finite(runner):
    class Broken:
        slots, max_tokens, vocabulary, chunk, nbytes = 2, ROOM, VOCAB, 16, 0

        def read(self, readings, out):
            out[:] = 0
            out[0, 3] = np.nan

    batch, heard, after = Batch(Broken(), 4), Heard(), Heard()
    batch.add(asked(5), heard)
    assert isinstance(heard.wait().error, ModelError)
    batch.add(asked(5), after)
    after.wait()
    assert batch.counts.known == 0  # nothing is taken over from what was broken
    batch.close()


def test_refuses_what_cannot_be_written(batch):
    for one, reason in (
        (asked(128), "a prompt of 128 tokens .* room for 1 to 127"),
        (asked(0), "a prompt of 0 tokens"),
        (asked(5, most=0), "`max_new_tokens=0`"),
        (Asked(np.array([1, VOCAB]), 5), f"token ids have to be in .0, {VOCAB}."),
    ):
        with pytest.raises(OptionError, match=reason):
            batch.add(one, Heard())


def test_on_modules_one_at_a_time(runner):
    notes = []
    modules = ModuleRunner(runner.module, runner._backend, flash_attention=False)
    decoder = modules.slots(ROOM, 4, notes.append)
    assert isinstance(decoder, OneText) and decoder.slots == 1
    assert notes == ["one text is written at a time: `flash_attention` is off"]
    batch, heard = Batch(decoder, 8), [Heard() for _ in range(3)]
    for seed, one in enumerate(heard):
        batch.add(asked(40, seed // 2, most=6), one)
    for seed, one in enumerate(heard):
        assert one.wait().error is None
        assert one.tokens == alone(modules, asked(40, seed // 2, most=6))
    assert batch.counts.known == 39
    batch.close()


def test_places():
    places, text = Places(3), np.arange(100)
    first = places.take(text)
    assert (first.slot, first.known) == (0, 0)
    places.hold(0, text)
    copied = places.take(text[:50])
    assert (copied.slot, copied.source, copied.known) == (1, 0, 49)
    places.hold(1, text[:50])
    other = places.take(text[60:])
    assert (other.slot, other.known) == (2, 0)
    for slot in (1, 0, 2):
        places.free(slot)
    places.hold(2, text[60:])
    again = places.take(np.append(text, 5))  # where it lies already
    assert (again.slot, again.source, again.known) == (0, 0, 100)
    places.free(0)
    short = places.take(np.append(text[:20], 7))  # of slot 1 there is little to lose, of 0 much
    assert (short.slot, short.known) == (1, 20)
    assert in_common(np.arange(3), np.arange(5)) == 3 and in_common(np.array([1]), np.array([2])) == 0
