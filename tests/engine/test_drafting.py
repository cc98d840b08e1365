"""Tokens written with proposals are those written without, whoever proposes what."""

import numpy as np
import pytest

from engine.drafting import Drafted, Drafting, together
from engine.generate import generate, greedy, pace_ms
from engine.rules import PlainRules
from engine.sampling import sampler
from qlinear.backends.cpu import native
from qlinear.errors import TargetError
from tests.engine.drafts import Knowing, always
from tests.engine.fusing import quantized_on, tokens_of
from tests.reading import parts
from tests.tiny import VOCAB

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

from engine.whole import fused_decoder  # noqa: E402
from qlinear.backends.cpu.backend import CpuBackend  # noqa: E402

MOST_ROWS = 9
LONG = dict(max_position_embeddings=1024)
FAMILIES = [
    ("llama", {}),
    ("mistral", dict(LONG, sliding_window=20)),
    ("gemma3_text", {}),
    ("qwen3_moe", {}),
    ("cohere2", {}),
]


def fused(model, max_tokens=128, chunk=40):
    decoder, reason = fused_decoder(model, CpuBackend(), max_tokens, chunk)
    assert decoder is not None, reason
    return decoder


def rows_of(decoder, text, known, rows):
    return np.concatenate([part.numpy() for part in parts(decoder, text, known, rows)])


def one_by_one(decoder, text, first):
    """Logits after the first tokens and each one after them, from a cache that never held anything else."""
    found = [rows_of(decoder, text[:first], 0, 1)]
    found += [rows_of(decoder, text[: at + 1], at, 1) for at in range(first, len(text))]
    return np.concatenate(found)


def assert_rows_as_alone(model, first, max_tokens=128, step=1):
    """Passes of 1 to 9 rows, each after one of wrong tokens that is taken back: the bits of a token read by itself."""
    text = tokens_of(first + 2 * MOST_ROWS).numpy()
    expected = one_by_one(fused(model, max_tokens), text, first)
    decoder, random = fused(model, max_tokens), np.random.default_rng(1)
    rows_of(decoder, text[:first], 0, 1)
    for rows in range(1, MOST_ROWS + 1, step):
        for known in (first - 1, first + rows // 2):
            wrong = random.integers(0, VOCAB, MOST_ROWS + 3)
            rows_of(decoder, np.concatenate([text[:known], wrong]), known, 1)
            found = rows_of(decoder, text[: known + rows], known, rows)
            assert np.array_equal(found, expected[known - first + 1 : known - first + 1 + rows])
            rows_of(decoder, text[: first + rows], first - 1, 1)  # the cache is right up to the next


@pytest.mark.parametrize("isa", native.ISAS)
@pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])
@pytest.mark.parametrize("bits, head", [(4, True), (3, False)])
def test_rows_of_a_pass_have_the_bits_of_tokens_alone(isa, int8, bits, head):
    """With activations rounded to int8 too: a row is rounded by what is in it."""
    if isa not in AVAILABLE:
        pytest.skip(f"this machine has no {isa}")
    native.select_isa(isa)
    try:
        model, _ = quantized_on(CpuBackend(int8=int8), "llama", bits, head=head, tie_word_embeddings=not head)
        assert_rows_as_alone(model, 21)
    finally:
        native.select_isa("")


@pytest.mark.parametrize(("kind", "options"), FAMILIES[1:], ids=lambda value: str(value)[:20])
def test_what_was_taken_back_leaves_nothing(kind, options):
    """With windows, experts and parallel blocks, where rows cross the tiles of 16 and the steps of 128 positions."""
    model, _ = quantized_on(CpuBackend(), kind, **options)
    assert_rows_as_alone(model, 12, step=3)
    assert_rows_as_alone(model, 125, 200, step=4)


def test_across_the_positions_whose_attention_is_computed_apart():
    assert_rows_as_alone(quantized_on(CpuBackend(), "llama", **LONG)[0], 253, 300, step=4)


class Watched:
    """A sampler or rule that keeps what it was given: copies."""

    def __init__(self, inner):
        self.inner, self.given = inner, []

    def __call__(self, *arguments):
        self.given.append([np.array(one) for one in arguments])
        return self.inner(*arguments)


def written(decoder, prompt, new=40, draft=None, *, draw=None, penalty=1.4, ends=frozenset()):
    """Tokens; what they were chosen from; what the rules were given; the draft's figures."""
    choose = Watched(greedy if draw is None else sampler(seed=3, **draw))
    rules = Watched(PlainRules({"repetition_penalty": penalty}).for_text(len(prompt), new) or (lambda text, row: row))
    drafting = draft and draft.for_text()
    found = [token.id for token in generate(decoder, prompt, new, ends, choose, rules, drafting=drafting)]
    return found, choose.given, rules.given, drafting and drafting.drafted


def assert_same(plain, drafted):
    assert drafted[0] == plain[0]
    for mine, theirs in zip(drafted[1:3], plain[1:3], strict=True):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


DRAWN = [None, dict(temperature=0.9), dict(temperature=1.5, top_k=20, top_p=0.8)]


@pytest.mark.parametrize("draw", DRAWN, ids=["greedy", "drawn", "top"])
@pytest.mark.parametrize("lies", [0, 1, 3])
def test_the_same_tokens_from_the_same_logits(draw, lies):
    """Of a proposer that knows them all, of one that always lies, and of one that does sometimes: by the same draws,
    the same calls of the rules, and what they get has the same bits.
    """
    decoder, prompt = fused(quantized_on(CpuBackend(), "qwen3")[0]), tokens_of(17).numpy()
    plain = written(decoder, prompt, draw=draw)
    whole = np.concatenate([prompt, plain[0]])
    for count in (1, 2, 5, 8):
        draft, policy = always(count, Knowing(whole, lies, seed=count))
        drafted = written(decoder, prompt, draft=draft, draw=draw)
        assert_same(plain, drafted)
        figures = drafted[3]
        assert figures.passes == len(policy.passes) and figures.proposed == sum(policy.passes)
        assert figures.tokens_per_pass == pytest.approx(39 / figures.passes)
        if lies == 0:
            assert figures.accepted == figures.proposed and figures.passes == -(-39 // (count + 1))
        if lies == 1:
            assert figures.accepted == 0 and figures.passes == 39


@pytest.mark.parametrize(("kind", "options"), FAMILIES, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("draw", [None, dict(temperature=0.7)], ids=["greedy", "drawn"])
def test_the_same_tokens_of_every_kind_of_model(kind, options, draw):
    model, _ = quantized_on(CpuBackend(), kind, **options)
    prompt = np.tile(tokens_of(6, seed=5).numpy(), 4)
    plain = written(fused(model), prompt, draw=draw, penalty=1.0)
    decoder = fused(model)
    for draft, _ in (always(7), always(3, Knowing(np.concatenate([prompt, plain[0]]), 2))):
        assert_same(plain, written(decoder, prompt, draft=draft, draw=draw, penalty=1.0))


def test_by_lookup_with_whatever_is_measured():
    """With the policy of use, on this machine's own times."""
    from engine.drafting import Draft
    from engine.lookup import Lookup
    from engine.worth import Worth

    decoder, prompt = fused(quantized_on(CpuBackend(), "llama")[0]), tokens_of(9).numpy()
    plain, draft = written(decoder, prompt, 110, penalty=1.0), Draft(Lookup(), Worth(Lookup.kinds))
    for _ in range(3):
        assert_same(plain, written(decoder, prompt, 110, draft, penalty=1.0))


@pytest.mark.parametrize("new", [1, 2, 3, 9, 20])
def test_nothing_is_read_beyond_the_end(new):
    """A cache of just the size needed: the last token is not read, and none after it proposed."""
    model, prompt = quantized_on(CpuBackend(), "llama")[0], tokens_of(10).numpy()
    plain = written(fused(model, 10 + new), prompt, new)
    beyond = np.concatenate([prompt, plain[0], tokens_of(20).numpy()])
    draft, policy = always(8, Knowing(beyond))
    assert_same(plain, written(fused(model, 9 + new), prompt, new, draft))
    assert sum(policy.passes) + len(policy.passes) == new - 1


def test_an_end_token_within_what_was_accepted():
    decoder, prompt = fused(quantized_on(CpuBackend(), "llama")[0]), tokens_of(10).numpy()
    whole = written(decoder, prompt, penalty=1.6)[0]
    ends = frozenset({whole[6]})
    plain = written(decoder, prompt, ends=ends, penalty=1.6)
    assert plain[0] == whole[: whole.index(whole[6]) + 1] and 2 < len(plain[0])
    draft, policy = always(8, Knowing(np.concatenate([prompt, whole])))
    drafted = written(decoder, prompt, draft=draft, ends=ends, penalty=1.6)
    assert_same(plain, drafted)
    assert policy.passes == [8]
    assert drafted[3] == Drafted(8, len(plain[0]) - 1, 1, len(plain[0]) - 1)


def test_a_consumer_that_stops_early_has_drawn_no_more_than_it_has_heard():
    """What it goes on with later is drawn as if nothing had been proposed."""
    decoder, prompt = fused(quantized_on(CpuBackend(), "llama")[0]), tokens_of(10).numpy()
    whole = [token.id for token in generate(decoder, prompt, 30, choose=sampler(seed=7))]
    rest = []
    for draft in (None, always(8, Knowing(np.concatenate([prompt, whole])))[0]):
        choose = sampler(seed=7)
        drafting = draft and draft.for_text()
        heard = [
            token.id
            for _, token in zip(range(4), generate(decoder, prompt, 30, choose=choose, drafting=drafting), strict=False)
        ]
        assert heard == whole[:4]
        other = tokens_of(12, seed=8).numpy()
        rest.append([token.id for token in generate(decoder, other, 10, choose=choose)])
    assert rest[0] == rest[1]


def test_what_is_learned_of_a_pass():
    """Proposed and right, once the next begins; of one that nobody heard to its end, nothing."""
    draft, policy = always(3, Knowing([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    drafting = draft.for_text()
    assert isinstance(drafting, Drafting) and drafting.drafted == Drafted(0, 0, 0, None)
    assert drafting.propose(np.array([1, 2]), 10).tolist() == [3, 4, 5]
    drafting.took()
    drafting.wrote(True)
    drafting.wrote(False)
    assert policy.learned == []
    assert drafting.propose(np.array([1, 2, 3, 8]), 2).tolist() == [5, 6]
    assert policy.learned == [(3, 1)]
    assert drafting.propose(np.array([1, 2, 3, 8]), 0).tolist() == []


def test_the_pace_of_tokens_that_come_together_is_their_mean():
    seconds = [0.009, 0.0, 0.0, 0.003]
    assert pace_ms(seconds, None) == pytest.approx(1.5) and pace_ms(seconds[:1], None) == 9
    assert pace_ms(seconds, Drafted(9, 2, 2, 2.0)) == pytest.approx(3) and pace_ms([], None) is None


def test_figures_of_several_answers():
    assert together([Drafted(10, 6, 4, 2.5), Drafted(0, 0, 0, None), Drafted(2, 0, 12, 1.0)]) == Drafted(
        12, 6, 16, 22 / 16
    )
    assert together([]) == Drafted(0, 0, 0, None)
