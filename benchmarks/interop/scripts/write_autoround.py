"""Run in an environment with AutoRound: FLOATS PLACE GIVEN -> a checkpoint in PLACE, and what is written with it.

GIVEN: as JSON, `texts` to calibrate on, `longest` tokens of each, `prompts` as tokens, `count`, and `how`: what
`AutoRound` takes. The checkpoint is in GPTQ's format, which transformers would want another package for, so nothing is
written with it here: no tokens, and the seconds that it took, as JSON on the last line.
"""

import json
import sys
import time
from pathlib import Path

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

# It passes over texts shorter than it wants, and the same letters may be a token more or less when they are read again.
SPARE = 16


def main(floats: str, place: str, given: dict) -> None:
    seconds = 0.0 if Path(place).is_dir() else quantize(floats, place, given["texts"], given["longest"], given["how"])
    print(json.dumps({"tokens": [], "seconds": seconds}))


def quantize(floats: str, place: str, texts: list[str], longest: int, how: dict) -> float:
    tokenizer = AutoTokenizer.from_pretrained(floats)
    model = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.bfloat16)
    start = time.perf_counter()
    work = AutoRound(
        model, tokenizer, dataset=texts, seqlen=longest - SPARE, nsamples=len(texts), device_map="cpu", **how
    )
    work.quantize_and_save(place, format="auto_gptq")
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))
