"""Text to tokens and back, a whole text at once or as it is written."""

from typing import Any

import torch
from torch import Tensor

from qlinear.errors import OptionError


def encode(tokenizer: Any, text: str, special: bool = False) -> Tensor:
    """Token ids `(length,)`; `special` adds the tokens the tokenizer puts around a prompt."""
    return torch.tensor(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"], dtype=torch.int64)


def decode(tokenizer: Any, tokens: list[int]) -> str:
    """The text of an answer's tokens, without the special ones."""
    return tokenizer.decode(tokens, skip_special_tokens=True)


def encode_prompt(tokenizer: Any, prompt: str, chat: bool) -> Tensor:
    """Token ids `(length,)` of a prompt, put through the model's chat template if `chat`. Raises `OptionError`."""
    if not prompt.strip():
        raise OptionError(f"`prompt` {prompt!r} is empty; give some text")
    if chat:
        if not tokenizer.chat_template:
            raise OptionError("`chat`: this model's tokenizer has no chat template; leave `chat` out")
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    tokens = encode(tokenizer, prompt, special=not chat)
    if len(tokens) == 0:
        raise OptionError(f"`prompt` {prompt!r} has no tokens; give some text")
    return tokens


class TextStream:
    """Tokens in, text out: whole characters only, which together are what `decode` makes of all tokens.

    A character may take several tokens, and a token may read differently after another (a space before it, say). So
    each new one is decoded together with those of the piece before, and what that adds is given out. Where a tokenizer
    falls back to bytes, `decode` gives up all bytes in a row if one of them is of no whole character; here those that
    made whole ones have been given out.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._before = self._given = 0  # where the last piece that was given begins, and where it ends
        self._length = 0  # characters given

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is still to be completed."""
        self._tokens.append(token)
        known = decode(self._tokenizer, self._tokens[self._before : self._given])
        now = decode(self._tokenizer, self._tokens[self._before :])
        if len(now) <= len(known) or now.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._before, self._given = self._given, len(self._tokens)
        return self._out(now[len(known) :])

    def end(self) -> str:
        """What is left once there are no more tokens: the bytes of a character that was never completed."""
        return self._out(decode(self._tokenizer, self._tokens)[self._length :])

    def _out(self, text: str) -> str:
        self._length += len(text)
        return text
