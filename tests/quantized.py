"""Tiny models on disk, float and quantized, for tests that need a directory."""

from pathlib import Path

import torch

from run_awq import Recipe, quantize
from tests.tiny import VOCAB, tiny_model


def word_tokenizer():
    """Every tiny model's tokenizer: the words w3, w4, ... and three special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {word: index for index, word in enumerate([*special, *(f"w{i}" for i in range(3, VOCAB))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def save_float(directory: Path, model_type: str = "llama", **overrides) -> Path:
    """A tiny model in bfloat16 with its tokenizer, and a text to calibrate on beside it."""
    tiny_model(model_type, **overrides).to(torch.bfloat16).save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    words = torch.randint(3, VOCAB, (400,), generator=torch.Generator().manual_seed(3))
    calibration_text(directory).write_text(" ".join(f"w{word}" for word in words.tolist()))
    return directory


def calibration_text(model: Path) -> Path:
    return model.with_name(f"{model.name}.txt")


def recipe(model: Path, **changes) -> Recipe:
    """Plain rounding in groups of 32, unless changed; text is read from the file beside the model."""
    plain = dict(
        group_size=32, awq="none", solver="rtn", calib_data=str(calibration_text(model)), n_samples=8, seqlen=16, seed=0
    )
    return Recipe(**plain | changes)


def quantized(model: Path, output: Path, *, overwrite: bool = False, resume: bool = False, **changes) -> Path:
    """The checkpoint of a model by a `recipe` of these changes."""
    quantize(str(model), str(output), recipe(model, **changes), overwrite=overwrite, resume=resume)
    return output
