"""Who else writes checkpoints that are read here: libraries in environments of their own, and what each is told."""

from dataclasses import dataclass
from typing import Any

from benchmarks.interop.openers import GPTQMODEL, LLAMA_CPP, TORCH, Program


@dataclass(frozen=True)
class Writer(Program):
    """makes: what its script is told, by the name of the checkpoint; of_gguf: whether it is given SmolLM2 as the GGUF
    file that it is embedded as, and makes another, or as a directory of floats.
    """

    makes: dict[str, dict[str, Any]]
    of_gguf: bool = False


def _gptqmodel(bits: int = 4, **more) -> dict[str, Any]:
    return dict(bits=bits, group_size=64) | more


def _compressed(bits: int, symmetric: bool, group_size: int | None = 64) -> dict[str, Any]:
    """All linears but the output head."""
    grouped = dict(strategy="channel") if group_size is None else dict(strategy="group", group_size=group_size)
    weights = dict(num_bits=bits, type="int", symmetric=symmetric) | grouped
    return dict(ignore=["lm_head"], config_groups={"group_0": dict(targets=["Linear"], weights=weights)})


PLAIN_ORDER = dict(desc_act=False, act_group_aware=False)

WRITERS = (
    Writer(
        "GPTQModel",
        (TORCH, "gptqmodel", "optimum", "accelerate"),
        GPTQMODEL,
        "write_gptqmodel",
        {
            "gptq, symmetric": _gptqmodel(**PLAIN_ORDER),
            "gptq, asymmetric": _gptqmodel(sym=False, **PLAIN_ORDER),
            "gptq, as it is by default": _gptqmodel(),
            "gptq, 3 bits": _gptqmodel(3, **PLAIN_ORDER),
            "gptq, desc_act": _gptqmodel(desc_act=True),
            "awq": _gptqmodel(method="awq", format="gemm", sym=False),
            "awq, as it is by default": _gptqmodel(method="awq", format="gemm"),
        },
    ),
    Writer(
        "AutoAWQ",
        (TORCH, "transformers==4.51.3", "accelerate", "zstandard", "datasets"),
        ("autoawq", "transformers", "torch"),
        "write_autoawq",
        {"awq": dict(zero_point=True, q_group_size=64, w_bit=4, version="GEMM")},
        anyhow=("autoawq==0.2.9",),  # its requirements name triton, which is for GPUs
    ),
    Writer(
        "llm-compressor",
        (TORCH, "llmcompressor"),
        ("llmcompressor", "compressed-tensors", "transformers"),
        "write_llmcompressor",
        {
            "awq, W4A16": {"AWQModifier": {}, "QuantizationModifier": _compressed(4, True)},
            "awq, W4A16_ASYM": {"AWQModifier": {}, "QuantizationModifier": _compressed(4, False)},
            "gptq, W4A16": {"GPTQModifier": _compressed(4, True)},
            "gptq, W4A16_ASYM": {"GPTQModifier": _compressed(4, False)},
            "rounded, W4A16_ASYM": {"QuantizationModifier": _compressed(4, False)},
            "rounded, W4A16 in 32s": {"QuantizationModifier": _compressed(4, True, 32)},
            "rounded, channel-wise": {"QuantizationModifier": _compressed(4, True, None)},
            "rounded, 3 bits": {"QuantizationModifier": _compressed(3, False)},
        },
    ),
    Writer(
        "AutoRound",
        (TORCH, "auto-round", "accelerate"),
        ("auto-round", "transformers", "torch"),
        "write_autoround",
        {},  # its checkpoints are made for the table of recipes alone
    ),
    Writer("llama.cpp", LLAMA_CPP.requires, LLAMA_CPP.shows, "write_llama_cpp", {"gguf, Q4_0": {}}, of_gguf=True),
)
