"""A tokenizer that its tokenizer.json describes whole, without `transformers`, which takes seconds to load.

That it does so is not to be seen from the files alone: `agrees` finds it out (`checkpoints.proofs`).
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from qlinear.backends.stack import Unsupported

REASONING = ("reasoning_content", "thinking", "reasoning")
_ELSEWHERE = "that of transformers is `AutoTokenizer.from_pretrained(DIR)`"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class PlainTokenizer:
    """What running a model takes of a tokenizer of `transformers`, by the same names.

    chat_template: a Jinja template, several by name, or None.
    """

    def __init__(self, directory: Path):
        """Raises `Unsupported` for one of which tokenizer.json does not say everything, `OSError` for none."""
        from tokenizers import Tokenizer

        config = _read_config(directory / "tokenizer_config.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower kind
            raise Unsupported(f"its tokenizer.json cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special_tokens_map = {name: _content(config[name]) for name in SPECIAL if config.get(name) is not None}
        self._check(config)
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
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        **seen: Any,
    ) -> str:
        """The text that the template makes of messages; with what `transformers` lets a template see."""
        if tokenize:
            raise NotImplementedError(f"text is all that a template makes here; {_ELSEWHERE}")
        template = self.chat_template
        if isinstance(template, dict):
            template = template["tool_use" if tools is not None and "tool_use" in template else "default"]
        known = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
        return (
            _environment()
            .from_string(template)
            .render(messages=[_with_reasoning(one) for one in messages], **known, **{**self.special_tokens_map, **seen})
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"this tokenizer has no {name}; {_ELSEWHERE}")

    def _id(self, name: str) -> int | None:
        content = self.special_tokens_map.get(name)
        return None if content is None else self._tokenizer.token_to_id(content)

    def _check(self, config: dict) -> None:
        added = self._tokenizer.get_added_tokens_decoder()
        for token, one in (config.get("added_tokens_decoder") or {}).items():
            there = added.get(int(token))
            if there is None or there.content != _content(one) or there.special != one.get("special", False):
                raise Unsupported(f"its tokenizer.json does not have the added token {token}")
        special = {one.content for one in added.values() if one.special}
        for name, content in self.special_tokens_map.items():
            if content not in special:
                raise Unsupported(f"its tokenizer.json does not have the {name} {content!r} as a special token")


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """What was thought before an answer, by the names that templates have for it; other names are taken for theirs."""
    thought = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}


# Spaces, scripts, digits, cases and marks that tokenizers take in their own ways.
PROBES = (
    "", " ", "Hello, world! It's 3,141.59 o'clock.", "  two  spaces\n\n and\tlines\r\n", "ICHI ni-san_4 ...!?",
    "na\u00efve \uff21\uff22\uff23 \ufb01 \u00bd \u0130stanbul \u00df",
    "\u200b\ufeff\u0301e\u0301 \U0001f469\u200d\U0001f467",
    "\u65e5\u672c\u8a9e, \u0440\u0443\u0441\u0441\u043a\u0438\u0439, \ud55c\uad6d\uc5b4",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "def f(x):\n    return x ** 2  # twice", "a  2024\n    1", "The CAT sat. \u00c9t\u00e9",
)  # fmt: skip


def agrees(directory: Path, tokenizer: Any) -> bool:
    """Whether `PlainTokenizer` makes the tokens and texts of a directory that its tokenizer of `transformers` does."""
    plain = PlainTokenizer(directory)
    ends = (plain.bos_token_id, plain.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return ends and _says_the_same(plain, tokenizer) and _has_the_same_templates(plain, tokenizer)


def _says_the_same(plain: PlainTokenizer, tokenizer: Any) -> bool:
    added = tokenizer.get_added_vocab()
    for text in (*PROBES, " ".join(["a", *added, "b"])):
        for special in (False, True):
            tokens = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            if plain(text, add_special_tokens=special)["input_ids"] != tokens:
                return False
            for skipped in (False, True):
                written = tokenizer.decode(tokens, skip_special_tokens=skipped)
                if plain.decode(tokens, skip_special_tokens=skipped) != written:
                    return False
    return True


def _has_the_same_templates(plain: PlainTokenizer, tokenizer: Any) -> bool:
    """And the same names for them to use. They are not run: they are programs of the model's maker."""
    names = {name: one for name, one in tokenizer.special_tokens_map.items() if isinstance(one, str)}
    return plain.special_tokens_map == names and (plain.chat_template or None) == (tokenizer.chat_template or None)


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unsupported(f"its tokenizer_config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise Unsupported("its tokenizer_config.json is not an object")
    if config.get("auto_map"):
        raise Unsupported("its tokenizer has code of its own")
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
