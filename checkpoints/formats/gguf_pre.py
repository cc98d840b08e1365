"""Which of the pre-tokenizers that llama.cpp knows by name a tokenizer has, told by what it does, and the other way.

llama.cpp writes the expressions down in its source, one for each name (`llm_tokenizer_bpe` of its llama-vocab.cpp,
which quotes the original of tokenizer.json where its own engine needed another spelling). A tokenizer that has none
of them is refused: with the wrong one a model still writes, and worse.
"""

from dataclasses import dataclass
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

# Other names for the same (llama.cpp's `llama_vocab::impl::load`), which are read and never written.
SAME = {
    **dict.fromkeys(("phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "olmo", "mpt", "jais", "trillion"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("dbrx", "glm4", "chatglm-bpe"), "smaug-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "kormo"), "qwen2"),
    **dict.fromkeys(("llama4", "kanana2"), "gpt-4o"),
}  # fmt: skip
BEGINS = ("llama-bpe", "tekken")  # where a text begins with a token of its own, unless the header says otherwise


@dataclass(frozen=True)
class Way:
    """How text becomes pieces before merges. steps: as `NAMES` has them."""

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool

    @property
    def adds_bos(self) -> bool:
        return self.name in BEGINS

    def pre_tokenizer(self) -> Any:
        """As a `tokenizers.pre_tokenizers.PreTokenizer`."""
        from tokenizers import Regex, pre_tokenizers

        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="gpt2" in self.steps)
        if self.steps == ("gpt2",):
            return byte_level
        before = [
            pre_tokenizers.Digits(individual_digits=True)
            if step == "digits"
            else pre_tokenizers.Split(Regex(step), behavior="isolated")
            for step in self.steps
            if step != "gpt2"
        ]
        return pre_tokenizers.Sequence([*before, byte_level])


def way_named(name: str) -> Way | None:
    """Of llama.cpp's name; None for one that is not known here."""
    written = SAME.get(name, name)
    known = ((steps, ignore) for (steps, ignore), one in NAMES.items() if one == written)
    return next((Way(written, *one) for one in known), None)


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
