"""Several texts in one decoder: what comes after a token has the same bits in any company, however its text is cut."""

import numpy as np
import pytest
import torch

from qlinear.backends.cpu import native
from qlinear.backends.stack import Reading
from qlinear.backends.widths import Widths
from qlinear.errors import TargetError
from tests.engine.fusing import distance, float_logits, quantized_on, tokens_of
from tests.tiny import FOUND_OUT_VARIANTS, VARIANTS, VOCAB

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

from architectures.registry import fused_families  # noqa: E402
from engine.parts import ModuleParts  # noqa: E402
from engine.stack import describe  # noqa: E402
from qlinear.backends.cpu.backend import CpuBackend  # noqa: E402

FUSED = [(kind, options) for kind, options in VARIANTS + FOUND_OUT_VARIANTS if kind in fused_families()]
LONG = dict(max_position_embeddings=1024)


def stack_of(model, max_tokens=128, chunk=40, slots=3, backend=CpuBackend):
    return backend().decoder(describe(model.config, ModuleParts(model), max_tokens), max_tokens, chunk, slots)


def read(stack, *readings):
    """Logits of each reading; one is (tokens, position, rows, slot)."""
    given = [Reading(np.asarray(tokens, np.int64), *where) for tokens, *where in readings]
    out = np.full((sum(one.rows for one in given), stack.vocabulary), np.nan, np.float32)
    stack.read(given, out)
    return np.split(out, np.cumsum([one.rows for one in given])[:-1])


def alone(model, text, max_tokens=128):
    """Logits after every token, which is read by itself."""
    stack = stack_of(model, max_tokens, 1, 1)
    return np.concatenate([read(stack, (text[at : at + 1], at, 1, 0))[0] for at in range(len(text))])


def interleaved(stack, texts, seed):
    """Logits after every token of texts, one a slot, of which each call reads some of some."""
    random = np.random.default_rng(seed)
    at, found = [0] * len(texts), [[] for _ in texts]
    while any(begin < len(text) for begin, text in zip(at, texts, strict=True)):
        room, readings = stack.chunk, []
        for slot in random.permutation(len(texts)):
            left = min(len(texts[slot]) - at[slot], room)
            if left == 0 or random.random() < 0.3:
                continue
            count = 1 if random.random() < 0.5 else int(random.integers(1, left + 1))
            readings.append((texts[slot][at[slot] : at[slot] + count], at[slot], count, slot))
            at[slot], room = at[slot] + count, room - count
        for (_, _, _, slot), rows in zip(readings, read(stack, *readings) if readings else (), strict=True):
            found[slot].append(rows)
    return [np.concatenate(rows) for rows in found]


def assert_as_alone(model, lengths, max_tokens=128, **sizes):
    texts = [tokens_of(length, seed=length).numpy() for length in lengths]
    expected = [alone(model, text, max_tokens) for text in texts]
    for seed in (0, 1):
        found = interleaved(stack_of(model, max_tokens, slots=len(texts), **sizes), texts, seed)
        for rows, wanted in zip(found, expected, strict=True):
            assert np.array_equal(rows, wanted)
    return texts, expected


@pytest.mark.parametrize("isa", native.ISAS)
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("head", [True, False], ids=["head", "dense-head"])
def test_as_alone_on_every_instruction_set(isa, bits, head):
    if isa not in AVAILABLE:
        pytest.skip(f"this machine has no {isa}")
    native.select_isa(isa)
    try:
        model, exact = quantized_on(CpuBackend(), "llama", bits, head=head, tie_word_embeddings=not head)
        texts, found = assert_as_alone(model, (37, 60, 5))
        for text, rows in zip(texts, found, strict=True):
            expected = float_logits(exact.double(), torch.from_numpy(text))
            assert distance(torch.from_numpy(rows), expected) < 0.015
    finally:
        native.select_isa("")


@pytest.mark.parametrize(("kind", "options"), FUSED, ids=lambda value: str(value)[:40])
def test_as_alone_of_every_family(kind, options):
    assert_as_alone(quantized_on(CpuBackend(), kind, **options)[0], (33, 18, 41, 2))


@pytest.mark.parametrize("kind, window", [("llama", 0), ("mistral", 100), ("gemma3_text", 300)])
def test_as_alone_with_long_pasts_and_windows(kind, window):
    """Beyond the 256 positions whose attention is computed apart, and the 128 of a step."""
    options = dict(LONG, sliding_window=window) if window else LONG
    assert_as_alone(quantized_on(CpuBackend(), kind, **options)[0], (560, 300), 576, chunk=233)


def test_as_alone_at_any_number_of_threads():
    model, before = quantized_on(CpuBackend(), "gemma2", **LONG)[0], torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(assert_as_alone(model, (50, 21))[1])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_what_is_copied_is_read_as_if_it_had_been_read_there(count):
    model = quantized_on(CpuBackend(), "qwen3")[0]
    first, second = tokens_of(40).numpy(), np.concatenate([tokens_of(count).numpy(), tokens_of(20, seed=1).numpy()])
    stack = stack_of(model, chunk=64)
    other = tokens_of(60, seed=2).numpy()
    read(stack, (other, 0, 0, 2))
    read(stack, (first, 0, 0, 0))
    stack.copy(0, 2, count)
    found, went_on = read(stack, (second[count:], count, 20, 2), ([3], 40, 1, 0))
    assert np.array_equal(found, alone(model, second)[count:])
    assert np.array_equal(went_on, alone(model, np.append(first, 3))[40:])


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("known", [0, 13, 31, 32])
@pytest.mark.parametrize("length", [1, 2, 17, 31, 32, 39])
def test_a_text_that_came_to_nothing_leaves_nothing_behind(kv_bits, known, length):
    """Its keys and values are NaN from `known` on; after it in its slot comes another text, whole or from there on."""
    model, ruined = quantized_on(CpuBackend(), "llama")[0], VOCAB - 1
    model.model.embed_tokens.weight.data[ruined] = float("nan")
    begun, text = (np.minimum(tokens_of(count, seed=count).numpy(), ruined - 1) for count in (known, length))
    text = np.concatenate([begun, text])

    def fresh():
        return stack_of(model, chunk=100, slots=2, backend=lambda: CpuBackend(widths=Widths(kv=kv_bits)))

    expected = read(fresh(), (text, 0, length, 0))[0]
    assert np.isfinite(expected).all()
    for cuts in ([len(text)], range(known + 1, len(text) + 1)):
        stack = fresh()
        if known:
            read(stack, (begun, 0, 0, 0))
        poisoned, other = read(stack, ([ruined] * (80 - known), known, 1, 0), ([1] * 20, 0, 1, 1))
        assert np.isnan(poisoned).all() and np.isfinite(other).all()
        stack.copy(0, 1, known)
        rows = []
        for begin, end in zip([known, *cuts], cuts, strict=False):
            part = text[begin:end]
            found = read(stack, (part, begin, len(part), 0), (part, begin, len(part), 1))
            assert np.array_equal(*found)
            rows.append(found[0])
        assert np.array_equal(np.concatenate(rows), expected)


def test_refuses_what_there_is_no_room_for():
    stack = stack_of(quantized_on(CpuBackend(), "llama")[0], 32, 8, 2)
    for readings, reason in (
        ([([1] * 5, 0, 1, 0), ([1] * 4, 0, 1, 1)], "9 tokens of 2 texts: 8 at a time"),
        ([([1], 0, 1, 0), ([1], 1, 1, 0)], "in slots that differ"),
        ([([1], 0, 1, 2)], "position 0 of slot 2: there are 2 slots of 32 positions"),
        ([([1], 0, 1, -1)], "slot -1"),
        ([([1], 0, 1, 0), ([2, 2], 31, 1, 1)], "2 tokens at position 31 of slot 1"),
        ([([1], 0, 1, 0), ([VOCAB], 0, 1, 1)], "token ids have to be in"),
        ([], "0 tokens of 0 texts"),
    ):
        with pytest.raises(ValueError, match=reason):
            read(stack, *readings)
    for wrong in ((0, 2, 4), (-1, 0, 4), (0, 1, 33)):
        with pytest.raises(ValueError, match="there are 2 slots"):
            stack.copy(*wrong)
