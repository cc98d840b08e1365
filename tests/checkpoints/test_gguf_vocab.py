"""Tokenizers as GGUF has them: recognised by what they do, refused where llama.cpp has no like of them."""

import heapq
import json

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from checkpoints.formats.gguf_pre import pre_tokenizer_name
from checkpoints.formats.gguf_vocab import Vocabulary, read_vocabulary
from qlinear.errors import CheckpointError
from tests.checkpoints.pieces import TEMPLATE, byte_level, sentence_pieces

# As the models' own tokenizer.json have them.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
NEMO = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(("split", "ignore_merges", "name"), [
    (None, False, "gpt-2"), (LLAMA_3, True, "llama-bpe"), (LLAMA_3, False, "smaug-bpe"), (QWEN_2, False, "qwen2"),
    (NEMO, True, "tekken"),
])  # fmt: skip
def test_byte_level_tokenizers_are_told_apart_by_how_they_split(split, ignore_merges, name):
    found = read_vocabulary(byte_level(split, ignore_merges), 64, [2])
    assert (found.model, found.pre, found.scores) == ("gpt2", name, None)
    assert found.merges[:2] == ["t h", "th e"]
    assert found.tokens[3:5] == ["a", "b"] and found.tokens[-1] == "[PAD63]" and len(found.tokens) == 64
    assert found.kinds[:4] == [3, 3, 3, 1] and found.kinds[-1] == 5
    assert found.ids == {"bos": 1, "eos": 2, "padding": 0} and found.chat_template == TEMPLATE
    assert found.adds == {"add_bos_token": False, "add_eos_token": False, "add_space_prefix": False}


def test_digits_one_by_one_are_smollms():
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    assert read_vocabulary(tokenizer, 64, []).pre == "smollm"


def test_a_token_that_ends_a_turn_goes_along():
    assert read_vocabulary(byte_level(), 64, [2, 7]).ids == {"bos": 1, "eos": 2, "padding": 0, "eot": 7}
    found = read_vocabulary(byte_level(), 64, [2, 7, 8])
    assert found.ids == {"bos": 1, "eos": 2, "padding": 0, "eot": 7, "eom": 8} and found.notes == []
    (said,) = read_vocabulary(byte_level(), 64, [7, 2, 8, 9]).notes
    assert said == f"a header names three tokens that end an answer; {found.tokens[9]} would end one too"


def changed(**parts):
    tokenizer = byte_level()
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize(("tokenizer", "rows", "message"), [
    (lambda: byte_level(r"\p{L}+|\s"), 64, r"splits text by \p{L}+|\s, which is none of the ways that llama.cpp knows"),
    (lambda: byte_level(NEMO, False), 64, "as llama.cpp's tekken, but with ignore_merges=False"),
    (lambda: changed(pre_tokenizer=pre_tokenizers.Whitespace()), 64, "splits text by Whitespace, which is none"),
    (lambda: changed(normalizer=normalizers.Lowercase()), 64, "the tokenizer changes text (Lowercase)"),
    (byte_level, 40, "the tokenizer has a token of number 52, the embedding 40 rows"),
    (lambda: byte_level(chat_template={"a": "x", "b": "y"}), 64, "has several chat templates and no default"),
])  # fmt: skip
def test_what_llama_cpp_has_no_like_of_is_refused(tokenizer, rows, message):
    with pytest.raises(CheckpointError) as raised:
        read_vocabulary(tokenizer(), rows, [2])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_numbers_that_no_token_has():
    """A token beyond them, of a vocabulary with fewer tokens than there are rows."""
    described = json.loads(byte_level().backend_tokenizer.to_str())
    described["added_tokens"].append(described["added_tokens"][-1] | {"id": 70, "content": "<far>"})
    described["model"]["vocab"]["<far>"] = 70
    far = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)), eos_token="</s>")
    assert len(read_vocabulary(far, 80, [2]).tokens) == 80
    with pytest.raises(CheckpointError, match="has a token of number 70, the embedding 64 rows"):
        read_vocabulary(far, 64, [2])


def test_a_word_tokenizer_is_refused():
    from tests.quantized import word_tokenizer

    with pytest.raises(CheckpointError, match="is of kind WordLevel; GGUF is written for BPE"):
        read_vocabulary(word_tokenizer(), 128, [2])


def test_an_unknown_step_is_named():
    with pytest.raises(CheckpointError, match="splits text by nothing, which is none of the ways"):
        pre_tokenizer_name({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}, False)


# ---- pieces


def run_by_scores(text: str, found: Vocabulary) -> list[int]:
    """llama.cpp's way with pieces: of neighbours that make a token, the pair of the best score, the first first."""
    number_of = {token: number for number, token in enumerate(found.tokens) if found.kinds[number] in (1, 6)}
    text = ("▁" if found.adds["add_space_prefix"] else "") + text.replace(" ", "▁")
    parts: list[str | None] = list(text)
    while True:
        left = [index for index, part in enumerate(parts) if part is not None]
        pairs = [(a, b) for a, b in zip(left, left[1:], strict=False) if parts[a] + parts[b] in number_of]
        queue = [(-found.scores[number_of[parts[a] + parts[b]]], a, b) for a, b in pairs]
        if not queue:
            break
        heapq.heapify(queue)
        _, a, b = queue[0]
        parts[a], parts[b] = parts[a] + parts[b], None
    ids = []
    for part in filter(None, parts):
        bytes_of = [number_of[f"<0x{byte:02X}>"] for byte in part.encode()] if part not in number_of else []
        ids += bytes_of or [number_of[part]]
    return ids


@pytest.mark.parametrize("prepend", [True, False])
def test_scores_join_pieces_as_merges_do(prepend):
    tokenizer = sentence_pieces(prepend)
    found = read_vocabulary(tokenizer, 64, [2])
    assert (found.model, found.pre, found.merges) == ("llama", "default", None)
    assert found.adds == {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": prepend}
    assert found.kinds[:5] == [3, 3, 3, 2, 6] and found.tokens[4] == "<0x0A>"
    for text in ("the thing and another", "then to thee,  routine", "é in\nhere", "tthe andand"):
        assert run_by_scores(text, found) == tokenizer(text, add_special_tokens=False).input_ids, text


def test_a_piece_that_no_merge_makes_is_refused():
    tokenizer = sentence_pieces()
    state = tokenizer.backend_tokenizer.to_str().replace('["▁t","o"]', '["o","u"]')
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(state)
    with pytest.raises(CheckpointError, match="has the piece '▁to', which no merge makes"):
        read_vocabulary(tokenizer, 64, [2])


def test_spaces_that_special_tokens_take_along():
    """llama.cpp lets them only in a model that is called phi-3, and only if these tokens are there."""
    from tokenizers import AddedToken

    tokenizer = sentence_pieces()
    assert read_vocabulary(tokenizer, 64, [2]).file_name("My-Phi3-q") == "My-phi-q"
    end = AddedToken("<|end|>", rstrip=True, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    found = read_vocabulary(tokenizer, 80, [2])
    assert found.file_name("phi3") == "phi"
    assert found.notes == [
        "special tokens of the tokenizer take spaces behind them along, which llama.cpp leaves in the text"
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", end]})
    found = read_vocabulary(tokenizer, 80, [2])
    assert (found.file_name("mini"), found.file_name("Phi-3-mini"), found.notes) == ("mini (phi-3)", "Phi-3-mini", [])
