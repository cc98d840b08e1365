"""The formats that a checkpoint is exported to, and what of them is known before torch is loaded."""

# What a GGUF file holds matrices as that are not quantized, by the name of the format.
GGUF_FLOATS = {"gguf": "q8_0", "gguf-f16": "f16", "gguf-bf16": "bf16"}
# AutoAWQ's words: which of eight neighbouring columns each nibble is of, from the lowest.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# Programs that write gptq's first version by subtracting whole words: what has borrowed can be given back.
BY_WORDS = "gptqmodel"
FORMATS = ("compressed-tensors", "awq", "gptq", *GGUF_FLOATS)


def place_of(name: str, format: str) -> str:
    """What the export of a checkpoint of this name is called beside it, if nothing else is asked for."""
    return f"{name}{format.removeprefix('gguf')}.gguf" if format in GGUF_FLOATS else f"{name}-{format}"
