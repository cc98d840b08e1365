"""Calibration text and the blocks cut from it."""

import importlib.util
import os
import threading

import pytest
import torch

from qlinear.errors import CalibrationError, OptionError
from quantization.recipe import Recipe
from quantization.texts import hub, samples
from quantization.texts.files import read_file
from quantization.texts.samples import CalibrationText, read_text, token_blocks


class Numbers:
    """One token a word: its number. `before` a text stands what the tokenizer puts there by itself."""

    bos_token_id = 7777

    def __init__(self, before: tuple[int, ...] = ()):
        self.before = before

    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [*(self.before if add_special_tokens else ()), *(int(word) for word in text.split())]}


tokenizer = Numbers()


def blocks(text: CalibrationText, recipe: Recipe) -> torch.Tensor:
    found, bos = token_blocks(tokenizer, text, recipe)
    assert not bos
    return found


def numbers(count: int) -> CalibrationText:
    return CalibrationText("numbers", " ".join(map(str, range(count))))


def test_the_builtin_text_is_of_many_kinds_and_the_same_every_time():
    text = read_text("builtin")
    assert text.name == "builtin" and len(text.text) > 200_000
    assert text.text.count(" the ") > 1000 and text.text.count("    def ") > 10 and text.text.count("int64_t") > 10
    words = (" der ", " que ", " est ", " non ", "的", "ました", "습니다", " на ", "في", "है")
    assert all(word in text.text for word in words)
    again = read_text("builtin")
    assert text == again and text.sha256 == again.sha256 != CalibrationText("builtin", text.text).sha256


def test_the_builtin_conversations_are_questions_and_answers_in_turns():
    talks = read_text("builtin").conversations
    assert len(talks) > 20 and max(map(len, talks)) > 2
    for talk in talks:
        assert [message["role"] for message in talk] == ["user", "assistant"] * (len(talk) // 2)
        assert all(said == said.strip() != "" for said in (message["content"] for message in talk))
        assert not any(message["content"].startswith("> ") for message in talk)
    assert talks[0][2]["content"] == "And a hard one?" and talks[0][3]["content"].startswith("Ten to eleven minutes.")


class Talking(Numbers):
    """A user's messages stand between zeros in the template, others between ones; with a 13 it takes none."""

    chat_template = "given"

    def apply_chat_template(self, messages, tokenize):
        assert not tokenize
        if any("13" in message["content"] for message in messages):
            raise ValueError("no 13")
        return " ".join(
            f"{mark} {message['content']} {mark}"
            for message in messages
            for mark in ["user assistant".split().index(message["role"])]
        )


def said(*contents: str) -> list[dict[str, str]]:
    return [{"role": role, "content": one} for role, one in zip(("user", "assistant"), contents, strict=False)]


@pytest.mark.parametrize(
    "with_template, expected",
    [(True, [5, 6, 0, 20, 0, 1, 21, 22, 1, 13, 14, 0, 30, 0]), (False, [5, 6, 20, 21, 22, 13, 14, 30])],
)
def test_conversations_go_through_the_template_and_stand_as_paragraphs_where_there_is_none(with_template, expected):
    text = CalibrationText("numbers", "5 6", (said("20", "21 22"), said("13", "14"), said("30")))
    ours = Talking()
    ours.chat_template = "given" if with_template else None
    told = []
    found, _ = token_blocks(ours, text, Recipe(seqlen=8, n_samples=9), tell=told.append)
    note = "conversations of the calibration text that the chat template does not take: 1, as paragraphs"
    assert told == [note] * with_template
    assert found.flatten().tolist() == expected[: len(expected) // 8 * 8]


def test_a_file_is_named_without_its_folder(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("w5 w6 w7 " * 20, encoding="utf-16-le")
    with pytest.raises(OptionError, match="seems to be UTF-16, every other byte is 0; save it as UTF-8"):
        read_file(path, "`calib_data`", OptionError)
    path.write_text("Grüße, 世界\n", encoding="utf-8")
    assert read_text(str(path)) == CalibrationText("prose.txt", "Grüße, 世界\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.txt", "no such file, and not one of builtin, pileval, wikitext2, c4, self$"),
        ("", "cannot be read: Is a directory$"),  # the folder itself
        ("latin1.txt", "is not UTF-8 text: invalid start byte at byte 2$"),
        ("with\0zero", "cannot be read: embedded null byte$"),
        ("x" * 5000, "cannot be read: File name too long$"),
    ],
)
def test_text_that_cannot_be_read(tmp_path, name, message):
    (tmp_path / "latin1.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(CalibrationError, match=message) as error:
        read_text(f"{tmp_path}/{name}")
    assert "\n" not in str(error.value) and str(error.value).startswith("`calib_data=")


def test_a_hub_text_without_a_network(monkeypatch):
    def unreachable():
        raise ConnectionError("https://...")

    monkeypatch.setitem(samples.HUB, "c4", unreachable)
    with pytest.raises(CalibrationError) as error:
        read_text("c4")
    assert str(error.value) == (
        "`calib_data=c4` could not be fetched (ConnectionError); without a network, use builtin or a text file"
    )


def test_a_hub_text_without_the_library_for_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CalibrationError, match="^`calib_data=c4` comes .* pip install datasets$"):
        read_text("c4")


def test_hub_rows_are_joined_by_empty_lines(monkeypatch):
    monkeypatch.setitem(samples.HUB, "wikitext2", lambda: ["one", "", "two\n"])
    assert read_text("wikitext2") == CalibrationText("wikitext2", "one\n\n\n\ntwo\n")


@pytest.mark.parametrize(("limit", "fetched"), [(3, 3), (None, 5)])
def test_no_more_rows_are_fetched_than_asked_for(monkeypatch, limit, fetched):
    asked, given = [], []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        for index in range(5):
            given.append(index)
            yield {"text": f"row {index}"}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert hub.split_rows("some/set", "part", "train", limit)() == [f"row {index}" for index in range(fetched)]
    assert asked == [(("some/set", "part"), {"split": "train", "streaming": limit is not None})]
    assert len(given) == fetched


def test_blocks_are_whole_consecutive_pieces_in_the_order_of_the_text():
    found = blocks(numbers(1000), Recipe(n_samples=7, seqlen=30, seed=42))
    assert found.shape == (7, 30) and found.dtype == torch.int64
    starts = found[:, 0]
    assert torch.equal(found, starts.unsqueeze(1) + torch.arange(30))
    assert (starts % 30 == 0).all() and (starts.diff() > 0).all()


def test_the_seed_draws_the_blocks_and_touches_no_global_state():
    state = torch.get_rng_state()
    draws = [blocks(numbers(1000), Recipe(n_samples=5, seqlen=10, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_as_drawn_fewer_samples_come_first_among_more():
    few, many = (Recipe(n_samples=count, seqlen=10, seed=3) for count in (4, 9))
    found, _ = token_blocks(tokenizer, numbers(200), many, as_drawn=True)
    assert torch.equal(found[:4].sort(0).values, blocks(numbers(200), few))
    assert torch.equal(found.sort(0).values, blocks(numbers(200), many))
    assert not torch.equal(found, found.sort(0).values)


def test_a_text_with_fewer_blocks_than_samples_gives_all_it_has():
    found = blocks(numbers(59), Recipe(n_samples=128, seqlen=20))
    assert torch.equal(found, torch.arange(40).view(2, 20))


@pytest.mark.parametrize("count", [0, 1, 19])
def test_a_text_shorter_than_one_block(count):
    with pytest.raises(CalibrationError, match=f"numbers has {count} tokens, less than one block of `seqlen=20`; use"):
        blocks(numbers(count), Recipe(n_samples=1, seqlen=20))
    assert blocks(numbers(20), Recipe(n_samples=1, seqlen=20)).shape == (1, 20)


BOS = Numbers.bos_token_id


@pytest.mark.parametrize(
    ("before", "asked", "first"),
    [((), None, [0, 1, 2]), ((BOS,), None, [BOS, 0, 1]), ((BOS,), False, [0, 1, 2]), ((BOS,), True, [BOS, 0, 1]),
     ((), True, [BOS, 0, 1]), ((5,), None, [5, 0, 1])],
)  # fmt: skip
def test_the_token_for_the_beginning_of_a_text_stands_before_it_once(before, asked, first):
    """By default as the tokenizer has it; what it was is told."""
    recipe = Recipe(n_samples=100, seqlen=10, bos=asked)
    found, bos = token_blocks(Numbers(before), numbers(100), recipe)
    assert found[0, :3].tolist() == first and bos == (first[0] == BOS)
    assert (found == BOS).sum() == (first[0] == BOS)
    assert found.flatten()[3:].tolist() == list(range(first[2] + 1, first[2] + 98))


def test_a_tokenizer_without_such_a_token():
    nothing = Numbers()
    nothing.bos_token_id = None
    with pytest.raises(OptionError) as error:
        token_blocks(nothing, numbers(100), Recipe(n_samples=1, seqlen=10, bos=True))
    assert str(error.value) == (
        "`bos`: this model's tokenizer has no token for the beginning of a text; leave `bos` out"
    )


def test_what_comes_out_of_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=["some words"])
    writer.start()
    assert read_text(str(pipe)).text == read_text(str(pipe)).text == "some words"
    writer.join()
