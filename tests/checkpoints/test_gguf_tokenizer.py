"""Tokenizers out of GGUF files: those that were put into them, whatever lies beside the file."""

import gguf
import pytest
from tokenizers import pre_tokenizers

from checkpoints.formats.gguf import read_arrays, read_header
from checkpoints.formats.gguf_pre import NAMES, SAME, way_named
from checkpoints.formats.gguf_tokenizer import open_tokenizer
from checkpoints.formats.gguf_vocab import read_vocabulary
from checkpoints.plain_tokenizer import PROBES
from qlinear.errors import ModelError
from tests.checkpoints.pieces import byte_level, sentence_pieces

TEXTS = (*PROBES, "the  theme\n    1 and 23456", "a  2024", "tHE the's 12 the", " the", "<s>the</s> the")


def written(path, vocabulary, without=(), **changes):
    """A file with nothing but a tokenizer. changes: to the header's fields; without: those left out."""
    writer = gguf.GGUFWriter(path, "llama")
    vocabulary.write(writer)
    fields = writer.kv_data[0]
    for name in without:
        del fields[f"tokenizer.ggml.{name}"]
    for name, value in changes.items():
        fields[f"tokenizer.ggml.{name}"].value = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def read(path):
    metadata, _ = read_header(path)
    return open_tokenizer(path, metadata, lambda *names: read_arrays(path, names))


def splitting(way):
    """A tokenizer that splits in one of llama.cpp's ways."""
    tokenizer = byte_level(None, way.ignore_merges)
    tokenizer.backend_tokenizer.pre_tokenizer = way.pre_tokenizer()
    return tokenizer


def same(ours, theirs):
    for text in TEXTS:
        for special in (False, True):
            tokens = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours(text, add_special_tokens=special)["input_ids"] == tokens, text
            assert ours.decode(tokens) == theirs.decode(tokens), text
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("name", NAMES.values())
def test_byte_level_tokenizers_come_back(tmp_path, name):
    tokenizer = splitting(way_named(name))
    found = read_vocabulary(tokenizer, 64, [2])
    assert found.pre == name
    same(read(written(tmp_path / "a.gguf", found)), tokenizer)


def test_digits_behind_spaces_are_split_as_the_header_says(tmp_path):
    found = read_vocabulary(splitting(way_named("smollm")), 64, [2])
    spaces = [read(written(tmp_path / f"{pre}.gguf", found, pre=pre))("a  20")["input_ids"] for pre in
              ("smollm", "starcoder", "gpt-2", "a.x-4.0")]  # fmt: skip
    assert spaces[0] == spaces[1] and spaces[2] == spaces[3]
    steps = way_named("smollm").pre_tokenizer().pre_tokenize_str("a  20")
    assert [piece for piece, _ in steps] == ["a", "ĠĠ", "2", "0"]
    assert [piece for piece, _ in way_named("gpt-2").pre_tokenizer().pre_tokenize_str("a  20")] == ["a", "Ġ", "Ġ20"]


def test_other_names_stand_for_ways_that_are_known():
    assert all(way_named(name) == way_named(one) and way_named(one).name == one for name, one in SAME.items())
    assert way_named("default") is None


@pytest.mark.parametrize("pre", ["default", "deepseek-llm", "nonsense", None])
def test_a_way_that_is_not_known_is_refused(tmp_path, pre):
    found = read_vocabulary(byte_level(), 64, [2])
    path = written(tmp_path / "a.gguf", found, **({"pre": pre} if pre else {"without": ["pre"]}))
    with pytest.raises(ModelError) as raised:
        read(path)
    told = f"{path} splits text by {pre!r} (tokenizer.ggml.pre), which is not known here: give the model's"
    assert str(raised.value).startswith(told) and "\n" not in str(raised.value)


def test_a_tokenizer_without_its_merges_is_refused(tmp_path):
    path = written(tmp_path / "a.gguf", read_vocabulary(byte_level(), 64, [2]), without=["merges"])
    with pytest.raises(ModelError, match="a.gguf has a tokenizer of 64 tokens and 0 merges"):
        read(path)


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("tekken", True), ("qwen2", False)])
def test_where_the_header_does_not_say_it_a_text_begins_as_llama_cpp_has_it(tmp_path, pre, begins):
    found = read_vocabulary(splitting(way_named(pre)), 64, [2])
    tokens = read(written(tmp_path / "a.gguf", found, without=["add_bos_token"]))("the")["input_ids"]
    assert (tokens[0] == found.ids["bos"]) == begins


def test_special_tokens_of_other_letters_keep_their_numbers(tmp_path):
    found = read_vocabulary(byte_level(), 64, [2])
    found.tokens[60], found.kinds[60] = "<｜User｜>", 3
    found.tokens[61], found.kinds[61] = "<｜begin▁of▁sentence｜>", 3
    found.ids["bos"] = 61
    tokenizer = read(written(tmp_path / "a.gguf", found))
    tokens = tokenizer("<｜begin▁of▁sentence｜><｜User｜>the")["input_ids"]
    assert tokens[:2] == [61, 60] and tokenizer.bos_token_id == 61 and len(tokenizer) == 64
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "the"


@pytest.mark.parametrize("prepend", [True, False])
def test_pieces_come_back(tmp_path, prepend):
    tokenizer = sentence_pieces(prepend)
    found = read(written(tmp_path / "a.gguf", read_vocabulary(tokenizer, 64, [2])))
    for text in ("the thing and another", "then to thee,  routine", "tthe andand", "thing\nthe"):
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("made", [byte_level, sentence_pieces])
def test_what_lies_beside_the_file_is_another_models(tmp_path, made):
    vocabulary = read_vocabulary(made(), 64, [2])
    alone = read(written(tmp_path / "alone.gguf", vocabulary))
    other = byte_level()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    other.chat_template = "another"
    folder = tmp_path / "together"
    other.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    found = read(written(folder / "a.gguf", vocabulary))
    assert found.chat_template == alone.chat_template != "another"
    for text in TEXTS:
        assert found(text)["input_ids"] == alone(text)["input_ids"]
