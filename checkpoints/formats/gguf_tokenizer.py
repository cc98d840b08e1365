"""The tokenizer that a GGUF file's header describes, of the two kinds that `gguf_vocab.py` writes.

Byte-level BPE is made here, since transformers splits text as GPT-2 does wherever it does not know how. A tokenizer of
pieces is made by transformers, from the file alone: one that lies beside it is another model's, as like as not.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from checkpoints.formats.gguf_pre import way_named
from checkpoints.formats.gguf_vocab import Kind
from qlinear.errors import ModelError

NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
Arrays = Callable[..., list[list | None]]


def open_tokenizer(path: Path, metadata: dict[str, Any], arrays: Arrays) -> Any:
    """A `PreTrainedTokenizerFast`. arrays: of the metadata, by their names. Raises `ModelError` where it is not known
    how the file's tokenizer splits text.
    """
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        return _byte_level(path, metadata, arrays)
    return _pieces(path, metadata)


def _byte_level(path: Path, metadata: dict[str, Any], arrays: Arrays) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    said = metadata.get("tokenizer.ggml.pre")
    way = way_named(str(said))
    if way is None:
        raise ModelError(
            f"{path} splits text by {said!r} (tokenizer.ggml.pre), which is not known here: give the model's "
            f"safetensors directory"
        )
    names = ("tokens", "token_type", "merges")
    tokens, kinds, merges = (found or [] for found in arrays(*(f"tokenizer.ggml.{name}" for name in names)))
    if not tokens or not merges:
        raise ModelError(f"{path} has a tokenizer of {len(tokens)} tokens and {len(merges)} merges")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    model = models.BPE({token: n for n, token in enumerate(tokens)}, pairs, ignore_merges=way.ignore_merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = way.pre_tokenizer(), decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for kind, special in ((Kind.CONTROL, True), (Kind.USER_DEFINED, False)):
        those = (token for token, its in zip(tokens, kinds, strict=False) if its == kind)
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(token, normalized=False, special=special) for token in those])
    numbers = {ours: metadata.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in NAMED.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        add_bos_token=bool(metadata.get("tokenizer.ggml.add_bos_token", way.adds_bos)),
        add_eos_token=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **{name: tokens[n] for name, n in numbers.items() if n is not None and 0 <= n < len(tokens)},
    )


def _pieces(path: Path, metadata: dict[str, Any]) -> Any:
    from tokenizers import normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    with TemporaryDirectory() as folder:  # in which there is no tokenizer.json
        link = Path(folder, "model.gguf")
        link.symlink_to(path.resolve())
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=link.name)
    tokenizer.name_or_path = ""
    if metadata.get("tokenizer.ggml.add_space_prefix") is False:
        backend = tokenizer.backend_tokenizer
        if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        if isinstance(backend.normalizer, normalizers.Sequence):
            backend.normalizer = normalizers.Replace(" ", "\u2581")
    return tokenizer
