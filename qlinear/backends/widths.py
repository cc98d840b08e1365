"""In how many bits a running model holds what is not quantized."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Widths:
    """In how many bits a stack holds what is not quantized: 16, bfloat16, or 8.

    kv: keys and values in the cache, as int8 with a scale for each head and position; head: an output head that is not
    quantized, as int8 with a scale for 64 weights in a row.
    """

    kv: int = 16
    head: int = 16
