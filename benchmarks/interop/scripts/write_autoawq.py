"""Run in an environment with AutoAWQ: FLOATS PLACE GIVEN -> a checkpoint in PLACE, and what AutoAWQ writes with it.

GIVEN: as JSON, `texts` to calibrate on, `prompts` as tokens, `count`, and `how`: AutoAWQ's `quant_config`. The greedy
tokens, as JSON on the last line.
"""

import json
import sys
from pathlib import Path

import torch
from awq import AutoAWQForCausalLM
from awq.models import base
from greedy import written
from transformers import AutoTokenizer

# On a processor AutoAWQ asks for kernels of another package, which is no more; its own arithmetic in torch runs too.
base.get_best_device = lambda: "torch"


def main(floats: str, place: str, texts: list[str], prompts: list[list[int]], count: int, how: dict) -> None:
    if not Path(place).is_dir():
        quantize(floats, place, texts, how)
    opened = AutoAWQForCausalLM.from_quantized(
        place, fuse_layers=False, device_map={"": "cpu"}, torch_dtype=torch.float16
    )
    print(json.dumps({"tokens": written(opened.model, prompts, count)}))


def quantize(floats: str, place: str, texts: list[str], how: dict) -> None:
    tokenizer = AutoTokenizer.from_pretrained(floats)
    # Searched in float32, which a processor multiplies much faster than float16, and saved as always.
    model = AutoAWQForCausalLM.from_pretrained(floats, device_map="cpu", torch_dtype=torch.float32)
    model.quantize(tokenizer, quant_config=how, calib_data=texts, max_calib_seq_len=128)
    model.model.half()
    model.save_quantized(place)
    tokenizer.save_pretrained(place)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], **json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))
