"""Run in an environment with transformers: DIRECTORY TEXT IDS COUNT -> the greedy tokens, as JSON on the last line."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(directory: str, text: str, ids: list[int], count: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    known = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(count):
            chosen = model(known).logits[0, -1].argmax()
            known = torch.cat([known, chosen.view(1, 1)], dim=1)
    said = {"tokens": known[0, len(ids) :].tolist(), "ids": tokenizer(text)["input_ids"]}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
