"""Which of the pre-tokenizers that llama.cpp knows by name a tokenizer has, told by what it does.

llama.cpp writes the expressions down in its source, one for each name (`llm_tokenizer_bpe` of its llama-vocab.cpp,
which quotes the original of tokenizer.json where its own engine needed another spelling). A tokenizer that has none
of them is refused: with the wrong one a model still writes, and worse.
"""

from typing import Any

from qlinear.errors import CheckpointError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = r"[^\r\n\p{L}\p{N}]?"


def _words(digits: str) -> str:
    return _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES


def _cased(ending: str, digits: str) -> str:
    words = f"{_WORD}{_UPPER}*{_LOWER}+{ending}|{_WORD}{_UPPER}+{_LOWER}*{ending}|"
    return words + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES


# (what splits the text before bytes are spelled, whether merges are passed over for whole words) -> llama.cpp's name.
# "gpt2" stands for the expression that the byte-level pre-tokenizer has built in.
NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    (("gpt2",), False): "gpt-2",
    (("digits", "gpt2"), False): "smollm",
    ((_words(r"\p{N}{1,3}"),), True): "llama-bpe",
    ((_words(r"\p{N}{1,3}"),), False): "smaug-bpe",
    ((_words(r"\p{N}"),), False): "qwen2",
    ((_cased("", r"\p{N}"),), True): "tekken",
    ((_cased(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),), False): "gpt-4o",
}  # fmt: skip


def pre_tokenizer_name(pre_tokenizer: dict | None, ignore_merges: bool) -> str:
    """llama.cpp's name of a byte-level pre-tokenizer as tokenizer.json has it; raises `CheckpointError` for others."""
    steps = _steps(pre_tokenizer)
    named = {merged: name for (known, merged), name in NAMES.items() if known == steps}
    if not named:
        raise CheckpointError(
            f"the tokenizer splits text by {_shown(steps)}, which is none of the ways that llama.cpp knows "
            f"({', '.join(dict.fromkeys(NAMES.values()))}); GGUF cannot hold it"
        )
    if ignore_merges not in named:
        raise CheckpointError(
            f"the tokenizer splits text as llama.cpp's {next(iter(named.values()))}, but with "
            f"ignore_merges={ignore_merges}, which llama.cpp does otherwise; GGUF cannot hold it"
        )
    return named[ignore_merges]


def _steps(pre_tokenizer: dict | None) -> tuple[str, ...]:
    """What a pre-tokenizer does, in order: expressions by which text is split, "digits" and "gpt2"."""
    parts = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    return tuple(name for part in parts for name in _step(part))


def _step(part: dict[str, Any]) -> list[str]:
    match part:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return ["gpt2"] if regex else []
        case {"type": "Digits", "individual_digits": True}:
            return ["digits"]
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return [regex]
        # What is matched is kept and what is not removed: the same where everything is matched, as it is by these.
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}:
            return [regex]
    return [str(part.get("type"))]


def _shown(steps: tuple[str, ...]) -> str:
    return " then ".join(step if len(step) < 60 else f"{step[:57]}..." for step in steps) or "nothing"
