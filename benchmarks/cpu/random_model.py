"""A float model of a checkpoint's shape with random weights, for programs that quantize what they run themselves.

Imported by their interpreters, which need torch and transformers.
"""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig


def write_random(checkpoint: Path, directory: Path) -> PretrainedConfig:
    """Model and tokenizer, in bfloat16; the model's configuration."""
    config = AutoConfig.from_pretrained(checkpoint)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    for file in checkpoint.glob("tokenizer*"):
        shutil.copy(file, directory)
    return config
