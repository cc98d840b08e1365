"""Run in an environment with llm-compressor: FLOATS PLACE GIVEN -> a checkpoint in PLACE, and what is written with it.

GIVEN: as JSON, `texts` to calibrate on, `longest` tokens of each, `prompts` as tokens, `count`, and `how`: its
modifiers by name, with their arguments. It is opened by transformers, in float32: in bfloat16, activations rounded
elsewhere decide more tokens. The greedy tokens, and the seconds that it took, as JSON on the last line.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from greedy import written
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer

# Its awq asks for memory that a GPU can read, and fails where there is no GPU.
IntermediatesCache.pin_memory = lambda *given: None
MODIFIERS = {each.__name__: each for each in (AWQModifier, GPTQModifier, QuantizationModifier)}


def main(floats: str, place: str, given: dict) -> None:
    seconds = 0.0 if Path(place).is_dir() else compress(floats, place, given)
    opened = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    print(json.dumps({"tokens": written(opened, given["prompts"], given["count"]), "seconds": seconds}))


def compress(floats: str, place: str, given: dict) -> float:
    texts, longest, modifiers = given["texts"], given.get("longest", 128), given["how"]
    tokenizer = AutoTokenizer.from_pretrained(floats)
    model = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.bfloat16)
    rows = Dataset.from_list([dict(tokenizer(text, max_length=longest, truncation=True)) for text in texts])
    recipe = [MODIFIERS[name](**arguments) for name, arguments in modifiers.items()]
    start = time.perf_counter()
    oneshot(
        model=model, recipe=recipe, dataset=rows, max_seq_length=longest, num_calibration_samples=len(rows),
        processor=tokenizer,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    model.save_pretrained(place, save_compressed=True)
    tokenizer.save_pretrained(place)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))
