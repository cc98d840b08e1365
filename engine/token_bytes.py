"""What single tokens write, byte by byte: of those in the middle of a character, too."""

import json
import re
from typing import Any

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # as sentencepiece has one
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _letters() -> dict[str, int]:
    """The letter that byte-level tokenizers have for each byte (`bytes_to_unicode` of GPT-2): itself where it can be
    seen, else one of those from U+0100 on.
    """
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 0x100)]
    others = [byte for byte in range(0x100) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


class TokenBytes:
    """Of one tokenizer; what its decoder is made of says how its tokens are spelled."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        told = json.loads(decoder.__getstate__()) if decoder is not None else {}
        kinds = {one.get("type") for one in told.get("decoders", [told])}
        self._letters = _letters() if "ByteLevel" in kinds else {}
        self._pieces = bool(kinds & {"Metaspace", "Replace", "ByteFallback"})
        added = backend.get_added_tokens_decoder() if backend is not None else {}
        self._added = {number: one.content for number, one in added.items()}

    def __call__(self, token: int) -> bytes | None:
        """None where it cannot be told."""
        text = self._added.get(token)
        if text is not None:
            return text.encode()
        text = self._tokenizer.convert_ids_to_tokens(token)
        if text is None:
            return None
        if self._letters:
            found = [self._letters.get(letter) for letter in text]
            return None if None in found else bytes(found)
        if not self._pieces:
            return None
        byte = BYTE.fullmatch(text)
        return bytes([int(byte[1], 16)]) if byte else text.replace(SPACE, " ").encode()
