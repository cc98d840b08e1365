"""Tiny models on disk, float and quantized, for tests that need a directory."""

from pathlib import Path

import torch

from awq_cli.tasks import quantize
from awq_cli.tasks.progress import Silent
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


def request(model: Path, output: Path, **changes) -> quantize.Request:
    plain = dict(
        model_name=str(model), w_bit=4, group_size=32, awq="none", scales=None, solver="rtn", lm_head=False,
        lm_head_group_size=32, calib_data=str(calibration_text(model)), n_samples=8, seqlen=16, seed=0,
        flash_attention=None, output=str(output), overwrite=False, resume=False, trust_remote_code=False,
    )  # fmt: skip
    return quantize.Request(**plain | changes)


def quantized(model: Path, output: Path, **changes) -> Path:
    quantize.run(request(model, output, **changes), Silent())
    return output
