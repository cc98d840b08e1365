"""Run in an environment with optimum-intel: DIRECTORY TEXT IDS COUNT -> the greedy tokens, as JSON on the last line."""

import json
import sys

import torch
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer

# Activations in float32: by default OpenVINO rounds them to bfloat16 or to int8, as the processor has it.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}


def main(directory: str, text: str, ids: list[int], count: int) -> None:
    try:
        model = OVModelForCausalLM.from_pretrained(directory, export=True, ov_config=EXACT)
    except RuntimeError as error:  # of the tracing: what went wrong in it is its cause
        raise error.__cause__ or error from None
    known = torch.tensor([ids])
    for _ in range(count):
        chosen = model(input_ids=known, attention_mask=torch.ones_like(known)).logits[0, -1].argmax()
        known = torch.cat([known, chosen.view(1, 1)], dim=1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    said = {"tokens": known[0, len(ids) :].tolist(), "ids": tokenizer(text)["input_ids"]}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
