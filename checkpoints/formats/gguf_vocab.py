"""A tokenizer as GGUF has it: the fields `tokenizer.*`, as llama.cpp reads them (its llama-vocab.cpp).

Two kinds are known: byte-level BPE (llama.cpp's "gpt2"), and BPE over text with spaces spelled out, made of a
SentencePiece model ("llama"), which llama.cpp runs by the scores of pieces.
"""

import json
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from checkpoints.formats.gguf_pre import pre_tokenizer_name
from qlinear.errors import CheckpointError

SPACE = "\u2581"  # SentencePiece's spelling of a space
# Of text whose spaces are spelled already: it splits nothing.
GEMMAS_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


class Kind(IntEnum):
    """llama.cpp's kinds of tokens (`llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """model, pre: llama.cpp's names; scores: of SentencePiece pieces, merges: of byte-level BPE; ids: by what they are

    called in `tokenizer.ggml.*_token_id`; adds: by its name in `tokenizer.ggml.*`, what is put around or before text;
    strips: whether special tokens take the spaces behind them along; unplaced: ends that the header has no field for.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None
    merges: list[str] | None
    ids: dict[str, int]
    adds: dict[str, bool]
    chat_template: str | None
    strips: bool = False
    unplaced: tuple[int, ...] = ()

    def file_name(self, name: str) -> str:
        """What the file may be called: llama.cpp lets special tokens of "phi-3" and "phi3", and no other, take spaces

        along, and fails where the vocabulary lacks one of these (`llama_vocab::impl::load`).
        """
        wanted = self.strips and {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(self.tokens)
        if re.search("phi-?3", name, re.IGNORECASE):
            return name if wanted else re.sub("phi-?3", "phi", name, flags=re.IGNORECASE)
        return f"{name} (phi-3)" if wanted else name

    @property
    def notes(self) -> list[str]:
        said = []
        if self.strips and self.file_name("") == "":
            said.append(
                "special tokens of the tokenizer take spaces behind them along, which llama.cpp leaves in the text"
            )
        if self.unplaced:
            named = ", ".join(self.tokens[number] for number in self.unplaced)
            said.append(f"a header names three tokens that end an answer; {named} would end one too")
        return said

    def write(self, writer: Any) -> None:
        """Put the fields into a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for name, number in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        for name, value in self.adds.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(tokenizer: Any, rows: int, ends: list[int]) -> Vocabulary:
    """What GGUF holds of a `PreTrainedTokenizerFast`.

    rows: of the embedding, and so tokens of the file; ends: the tokens that end a text, by the generation config.
    Raises `CheckpointError` for a tokenizer that llama.cpp has no like of.
    """
    described = _described(tokenizer)
    model = described["model"]
    added = {entry["id"]: entry for entry in described["added_tokens"]}
    if model.get("type") != "BPE":
        raise CheckpointError(f"the tokenizer is of kind {model.get('type')}; GGUF is written for BPE")
    if (last := max([*model["vocab"].values(), *added])) >= rows:
        raise CheckpointError(f"the tokenizer has a token of number {last}, the embedding {rows} rows")
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    pieces = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(model["vocab"], added, rows, pieces, model.get("unk_token"))
    common = dict(tokens=tokens, kinds=kinds, ids=_ids(tokenizer, ends), chat_template=_template(tokenizer))
    common["unplaced"] = tuple(end for end in ends if end not in common["ids"].values())
    common["strips"] = any(entry["special"] and entry["rstrip"] for entry in added.values())
    adds = _around(tokenizer)
    if pieces:
        adds["add_space_prefix"] = _space_prefix(described)
        scores = _scores(model["vocab"], merges, kinds)
        return Vocabulary("llama", "default", scores=scores, merges=None, adds=adds, **common)
    _check_normalizer(described["normalizer"])
    pre = pre_tokenizer_name(described["pre_tokenizer"], bool(model.get("ignore_merges")))
    adds["add_space_prefix"] = False
    return Vocabulary("gpt2", pre, scores=None, merges=[" ".join(merge) for merge in merges], adds=adds, **common)


def _described(tokenizer: Any) -> dict:
    """tokenizer.json."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError("the tokenizer has no tokenizer.json, which GGUF's is made from")
    return json.loads(backend.to_str())


def _tokens(
    vocabulary: dict[str, int], added: dict[int, dict], rows: int, pieces: bool, unknown: str | None
) -> tuple[list[str], list[int]]:
    """Text and kind of every token; rows of the embedding that no token has get one that is not used."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [int(Kind.UNUSED)] * rows
    for text, number in vocabulary.items():
        is_byte = pieces and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        tokens[number], kinds[number] = text, int(Kind.BYTE if is_byte else Kind.NORMAL)
    for number, entry in added.items():
        if entry["special"]:
            tokens[number], kinds[number] = entry["content"], int(Kind.CONTROL)
        else:
            tokens[number], kinds[number] = entry["content"].replace(SPACE, " "), int(Kind.USER_DEFINED)
    if unknown in vocabulary and pieces:
        kinds[vocabulary[unknown]] = int(Kind.UNKNOWN)
    if len(set(tokens)) < rows:
        raise CheckpointError("the tokenizer has two tokens of one text, which llama.cpp cannot tell apart")
    return tokens, kinds


def _ids(tokenizer: Any, ends: list[int]) -> dict[str, int]:
    """The tokens with a part to play. eot, eom: that end a turn and a message, beside the one that ends the text."""
    named = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    found = {name: getattr(tokenizer, f"{theirs}_token_id") for name, theirs in named.items()}
    ids = {name: number for name, number in found.items() if number is not None}
    if ends and "eos" not in ids:
        ids["eos"] = ends[0]
    turns = [end for end in ends if end != ids.get("eos")]
    return ids | dict(zip(("eot", "eom"), turns, strict=False))


def _around(tokenizer: Any) -> dict[str, bool]:
    """Whether a text gets a token before and behind it. Raises `CheckpointError` for others than bos and eos."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    around = {
        (bos, eos): [tokenizer.bos_token_id] * bos + plain + [tokenizer.eos_token_id] * eos
        for bos in (False, True)
        for eos in (False, True)
    }
    for (bos, eos), made in around.items():
        if made == whole:
            return {"add_bos_token": bos, "add_eos_token": eos}
    raise CheckpointError(f"the tokenizer makes {whole} of {plain}; GGUF can put bos before it and eos behind it only")


def _template(tokenizer: Any) -> str | None:
    if not tokenizer.chat_template:
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # several, and none of them the default
        raise CheckpointError("the tokenizer has several chat templates and no default; GGUF holds one") from error


def _check_normalizer(normalizer: dict | None) -> None:
    """llama.cpp leaves text to byte-level BPE as it is; NFC, which changes hardly any, it passes over everywhere."""
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise CheckpointError(f"the tokenizer changes text ({normalizer.get('type')}), which llama.cpp does not")


def _space_prefix(described: dict) -> bool:
    """Whether a space is put before a text of pieces. Raises `CheckpointError` for what does something else to text."""
    normalizer, before = described["normalizer"] or {}, described["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers") or ([normalizer] if normalizer else [])
    prepends = [step for step in steps if step == {"type": "Prepend", "prepend": SPACE}]
    spells = [step for step in steps if step == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    splits = before.get("type") in (None, "Metaspace") or before == GEMMAS_SPLIT
    if len(prepends) + len(spells) < len(steps) or not splits:
        raise CheckpointError("the tokenizer changes or splits text as llama.cpp's for SentencePiece does not")
    return bool(prepends) or before.get("prepend_scheme") in ("first", "always")


def _scores(vocabulary: dict[str, int], merges: list[list[str]], kinds: list[int]) -> list[float]:
    """Scores with which llama.cpp joins pieces in the order of the merges: less for what is made later.

    Raises `CheckpointError` for a piece that llama.cpp would make and the merges do not.
    """
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        rank.setdefault(left + right, place)
    scores = [0.0] * len(kinds)
    for text, number in vocabulary.items():
        if kinds[number] == Kind.NORMAL:
            if len(text) > 1 and text not in rank:
                raise CheckpointError(f"the tokenizer has the piece {text[:40]!r}, which no merge makes")
            scores[number] = -float(rank.get(text, len(merges)))
    return scores
