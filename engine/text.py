"""Text to tokens and back, a whole text at once or as it is written."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from engine.templates import NOTHING, Conversation, Render, Seen, render
from engine.token_bytes import TokenBytes
from qlinear.errors import ModelError, OptionError
from qlinear.values import check_words


def encode(tokenizer: Any, text: str, special: bool = False) -> np.ndarray:
    """Token ids `(length,)`; `special` adds the tokens the tokenizer puts around a prompt. Raises `OptionError`."""
    check_unicode(text, "the text")
    return np.array(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"], np.int64)


def encode_whole(tokenizer: Any, text: str, bos: bool | None = None) -> np.ndarray:
    """Token ids `(length,)` of a text to be scored or calibrated on.

    bos: whether the token for the beginning of a text stands before it, once; None: as the tokenizer has it by default,
    with whatever else it puts around a text. Raises `OptionError` where there is no such token.
    """
    tokens = encode(tokenizer, text, special=bos is None)
    if not bos:
        return _begun_once(tokenizer, tokens)
    if tokenizer.bos_token_id is None:
        raise OptionError("`bos`: this model's tokenizer has no token for the beginning of a text; leave `bos` out")
    return _begun_once(tokenizer, np.concatenate([[tokenizer.bos_token_id], tokens]))


def _begun_once(tokenizer: Any, tokens: np.ndarray) -> np.ndarray:
    """With one token for the beginning of a text where there are two: the text brought its own."""
    twice = begins_with_bos(tokenizer, tokens) and begins_with_bos(tokenizer, tokens[1:])
    return tokens[1:] if twice else tokens


def begins_with_bos(tokenizer: Any, tokens: np.ndarray) -> bool:
    """Whether the first of the tokens `(length,)` is that for the beginning of a text."""
    return len(tokens) > 0 and int(tokens[0]) == tokenizer.bos_token_id


def beginning(tokenizer: Any, bos: bool | None) -> int | None:
    """The token that `encode_whole` puts before a text, if it is that for the beginning of one."""
    tokens = encode_whole(tokenizer, "", bos)
    return tokenizer.bos_token_id if begins_with_bos(tokenizer, tokens) else None


def check_unicode(text: str, what: str) -> None:
    """Raise `OptionError` for bytes that are no UTF-8, as Python has them in a text from the command line."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        half = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half a character, U+{code:04X},"
        raise OptionError(f"{what} is not Unicode text: {half} at character {error.start + 1}; mend it") from error


def check_rows(tokenizer: Any, tokens: np.ndarray, rows: int) -> None:
    """Raise `ModelError` for a token that an embedding of so many rows has none for."""
    beyond = tokens[tokens >= rows]
    if len(beyond):
        token = int(beyond[0])
        raise ModelError(
            f"token {token} ({tokenizer.convert_ids_to_tokens(token)!r}) of the tokenizer has no row in the model's "
            f"embedding of {rows}; give the model its own tokenizer"
        )


def decode(tokenizer: Any, tokens: list[int]) -> str:
    """The text of an answer's tokens, without the special ones."""
    return tokenizer.decode(tokens, skip_special_tokens=True)


def encode_prompt(tokenizer: Any, prompt: str, chat: bool) -> np.ndarray:
    """Token ids `(length,)` of a prompt, put through the model's chat template if `chat`. Raises `OptionError`."""
    if chat:
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}])
    check_prompt(prompt)
    return _some(_begun_once(tokenizer, encode(tokenizer, prompt, special=True)), prompt)


def encode_chat(
    tokenizer: Any, messages: Conversation, rendered: Render | None = None, seen: Seen = NOTHING, begun: str = ""
) -> np.ndarray:
    """Token ids `(length,)` that the model's chat template makes of messages, up to where the answer is to begin.

    The last message is the user's, or what a tool gave. rendered: by what; None: by `engine.templates.render`; seen: as
    there; begun: what there is of the answer already. Raises `OptionError`.
    """
    for message in messages:
        check_unicode(message["content"], f"`{'system' if message['role'] == 'system' else 'prompt'}`")
    if messages[-1]["role"] != "tool":
        check_prompt(messages[-1]["content"])
    made = render(tokenizer, messages, seen) if rendered is None else rendered(messages, seen)
    return _some(encode(tokenizer, made + begun, special=False), made)


def check_prompt(prompt: str) -> None:
    """Raise `OptionError` for what is no text, or empty."""
    check_words("prompt", prompt)
    check_unicode(prompt, "`prompt`")
    if not prompt.strip():
        raise OptionError(f"`prompt` {prompt!r} is empty; give some text")


def _some(tokens: np.ndarray, prompt: str) -> np.ndarray:
    if len(tokens) == 0:
        raise OptionError(f"`prompt` {prompt!r} has no tokens; give some text")
    return tokens


BROKEN = "\N{REPLACEMENT CHARACTER}"
LONGEST = 4  # bytes of a character, each of which may be a token


class TextStream:
    """Tokens in, text out: whole characters only, which together are what `decode` makes of all tokens.

    A character may take several tokens, and a token may read differently after another (a space before it, say). So
    each new one is decoded together with those of the piece before, and what that adds is given out. Where a tokenizer
    falls back to bytes, `decode` gives up all bytes in a row if one of them is of no whole character; here those that
    made whole ones have been given out. Bytes that became none are given out, as what stands for them, with the next
    character.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._before = self._given = 0  # where the last piece that was read begins, and where it ends
        self._aside = ""  # read, and not given out yet

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is still to be completed."""
        self._tokens.append(token)
        known, now = self._read(self._given), self._read(None)
        if len(now) <= len(known):
            return ""
        if not now.endswith(BROKEN):
            self._set_aside(len(self._tokens), now[len(known) :])
            given, self._aside = self._aside, ""
            return given
        broken = self._given + LONGEST
        if len(self._tokens) >= broken + LONGEST:  # else all of them would be decoded with every further one
            first = self._read(broken)
            if now.startswith(first) and len(first) > len(known):
                self._set_aside(broken, first[len(known) :])
        return ""

    def end(self) -> str:
        """What is left once there are no more tokens: the bytes of a character that was never completed."""
        known, now = self._read(self._given), self._read(None)
        rest = now[len(known) :] if now.startswith(known) else decode(self._tokenizer, self._tokens[self._given :])
        return self._aside + rest

    def pass_over_broken(self) -> None:
        """Take what is still to be completed for given out, where it is no part of a character but a broken one."""
        if self._given == len(self._tokens):
            return
        told = TokenBytes(self._tokenizer)
        last = b"".join(told(token) or b"" for token in self._tokens[self._given :])
        if last.endswith(BROKEN.encode()):
            self._before, self._given, self._aside = self._given, len(self._tokens), ""

    def _read(self, end: int | None) -> str:
        return decode(self._tokenizer, self._tokens[self._before : end])

    def _set_aside(self, end: int, text: str) -> None:
        self._before, self._given = self._given, end
        self._aside += text


TAIL = 16  # tokens of a prompt that is gone on with: what a token reads like may depend on those before it


def continuing(tokenizer: Any, prompt: Sequence[int] | np.ndarray) -> TextStream:
    """A stream of what follows a prompt, in the words that it has behind it."""
    stream = TextStream(tokenizer)
    for token in prompt[-TAIL:]:
        stream.add(int(token))
    stream.pass_over_broken()
    return stream


def _is_in(content: str, marks: Collection[str]) -> bool:
    return bool(content) and any(content in mark for mark in marks)


class MarkedText:
    """A `TextStream` in which some special tokens are seen. pieces: the stream of what comes first."""

    def __init__(self, tokenizer: Any, pieces: TextStream, marks: Collection[str]):
        self._tokenizer, self._pieces = tokenizer, pieces
        backend = getattr(tokenizer, "backend_tokenizer", None) if marks else None
        added = {} if backend is None else backend.get_added_tokens_decoder()
        self._seen = {token: one.content for token, one in added.items() if one.special and _is_in(one.content, marks)}

    def add(self, token: int) -> str:
        if token not in self._seen:
            return self._pieces.add(token)
        before, self._pieces = self._pieces.end(), TextStream(self._tokenizer)
        return before + self._seen[token]

    def end(self) -> str:
        return self._pieces.end()


def answering(
    tokenizer: Any, prompt: Sequence[int] | np.ndarray, chat: bool, marks: Collection[str] = ()
) -> MarkedText:
    """A stream of an answer: of a turn of its own in a chat, else of what the prompt goes on with.

    marks: special tokens that are to be seen, as those that an answer is to end at.
    """
    return MarkedText(tokenizer, TextStream(tokenizer) if chat else continuing(tokenizer, prompt), marks)
