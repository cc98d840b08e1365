"""A tokenizer that its tokenizer.json describes whole, without `transformers`, which takes seconds to load."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from qlinear.backends.stack import Unsupported

# Classes of transformers that are nothing but their tokenizer.json. Others make themselves anew out of its vocabulary.
CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Fields that change what is made of a text.
_CHANGING = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens", "auto_map", "fix_mistral_regex",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
)  # fmt: skip


class PlainTokenizer:
    """What running a model takes of a tokenizer of `transformers`, by the same names.

    chat_template: a Jinja template, several by name, or None.
    """

    def __init__(self, directory: Path, proven: str | None = None):
        """Raises `Unsupported` for one of which tokenizer.json may not say everything, `OSError` for none.

        proven: what `proof` has found to be that it does.
        """
        from tokenizers import Tokenizer

        is_proven = proven is not None and proven == _mark(directory)
        config = _read_config(directory / "tokenizer_config.json", is_proven)
        try:
            self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower kind
            raise Unsupported(f"its tokenizer.json cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special_tokens_map = {name: _content(config[name]) for name in SPECIAL if config.get(name) is not None}
        self._check(config, is_proven)
        self.chat_template = _read_template(directory, config)
        self.bos_token_id, self.eos_token_id = self._id("bos_token"), self._id("eos_token")

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` that it is."""
        return self._tokenizer

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self._tokenizer.id_to_token(token)

    def apply_chat_template(
        self, messages: list[dict[str, str]], tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The text that the template makes of messages, never tokens; with what `transformers` lets a template see."""
        template = self.chat_template
        source = template["default"] if isinstance(template, dict) else template
        return _environment().from_string(source).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt,
            **self.special_tokens_map,
        )  # fmt: skip

    def _id(self, name: str) -> int | None:
        content = self.special_tokens_map.get(name)
        return None if content is None else self._tokenizer.token_to_id(content)

    def _check(self, config: dict, proven: bool) -> None:
        if self._tokenizer.post_processor is None and not proven:
            raise Unsupported("its tokenizer.json has no post_processor")
        if config.get("clean_up_tokenization_spaces") and type(self._tokenizer.model).__name__ != "BPE":
            raise Unsupported("its tokenizer cleans up spaces")
        added = self._tokenizer.get_added_tokens_decoder()
        for token, one in (config.get("added_tokens_decoder") or {}).items():
            there = added.get(int(token))
            if there is None or there.content != _content(one) or there.special != one.get("special", False):
                raise Unsupported(f"its tokenizer.json does not have the added token {token}")
        special = {one.content for one in added.values() if one.special}
        for name, content in self.special_tokens_map.items():
            if content not in special:
                raise Unsupported(f"its tokenizer.json does not have the {name} {content!r} as a special token")


# Spaces, scripts, digits, cases and marks that tokenizers take in their own ways.
PROBES = (
    "", " ", "Hello, world! It's 3,141.59 o'clock.", "  two  spaces\n\n and\tlines\r\n", "ICHI ni-san_4 ...!?",
    "na\u00efve \uff21\uff22\uff23 \ufb01 \u00bd \u0130stanbul \u00df",
    "\u200b\ufeff\u0301e\u0301 \U0001f469\u200d\U0001f467",
    "\u65e5\u672c\u8a9e, \u0440\u0443\u0441\u0441\u043a\u0438\u0439, \ud55c\uad6d\uc5b4",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "def f(x):\n    return x ** 2  # twice",
)  # fmt: skip


def proof(directory: Path, tokenizer: Any) -> str | None:
    """What `PlainTokenizer` takes for a proof that the tokenizer.json saved in a directory says everything.

    It is none, None, unless it makes the tokens and texts that the tokenizer itself does.
    """
    return _mark(directory) if _agrees(directory, tokenizer) else None


def _mark(directory: Path) -> str:
    """sha256 (hex) of what was proven: the settings, and how large the tokenizer is."""
    settings, size = (directory / "tokenizer_config.json").read_bytes(), (directory / "tokenizer.json").stat().st_size
    return hashlib.sha256(settings + f" {size}".encode()).hexdigest()


def _agrees(directory: Path, tokenizer: Any) -> bool:
    try:
        plain = PlainTokenizer(directory, _mark(directory))
        special = " ".join(["a", *plain.special_tokens_map.values(), "b"])
        for text in (*PROBES, special):
            for added in (False, True):
                tokens = tokenizer(text, add_special_tokens=added, verbose=False)["input_ids"]
                if plain(text, add_special_tokens=added)["input_ids"] != tokens:
                    return False
                for skipped in (False, True):
                    written = tokenizer.decode(tokens, skip_special_tokens=skipped)
                    if plain.decode(tokens, skip_special_tokens=skipped) != written:
                        return False
    except Exception:  # of whatever kind: then it does not
        return False
    ends = (plain.bos_token_id, plain.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return ends and (plain.chat_template or None) == (tokenizer.chat_template or None)


def _read_config(path: Path, proven: bool) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unsupported(f"its tokenizer_config.json cannot be read: {error}") from error
    if not isinstance(config, dict) or not (proven or config.get("tokenizer_class") in CLASSES):
        raise Unsupported(f"its tokenizer is of a class of its own, not one of {', '.join(CLASSES)}")
    changing = [name for name in _CHANGING if config.get(name)]
    if changing and not proven:
        raise Unsupported(f"its tokenizer_config.json has {changing[0]}")
    return config


def _read_template(directory: Path, config: dict) -> str | dict[str, str] | None:
    """As `transformers` finds it: a file of its own before the config's."""
    if (directory / "additional_chat_templates").exists():
        raise Unsupported("it has additional_chat_templates")
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    given = config.get("chat_template")
    if isinstance(given, list):
        return {one["name"]: one["template"] for one in given}
    return given


def _content(token: Any) -> str:
    """Of a token that is a text, or a record with one."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise Unsupported(f"its tokenizer_config.json has a token {token!r}")
    return content


def _environment() -> Any:
    """Jinja as `transformers` sets it up for chat templates (utils/chat_template_utils.py), in its sandbox."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag in which some templates wrap what the model writes: its content."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True), lineno=line)

    def raise_exception(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Unlike Jinja's own, nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
