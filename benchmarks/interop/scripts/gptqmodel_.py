"""Run in an environment with GPTQModel: DIRECTORY TEXT IDS COUNT -> the greedy tokens, as JSON on the last line."""

import json
import sys
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel

BACKENDS = {"gptq": BACKEND.GPTQ_TORCH, "awq": BACKEND.AWQ_TORCH}


def main(directory: str, text: str, ids: list[int], count: int) -> None:
    method = json.loads((Path(directory) / "config.json").read_text())["quantization_config"]["quant_method"]
    # The kernels that need no compiler: others are built for minutes when they are first asked for.
    opened = GPTQModel.load(directory, backend=BACKENDS[method], device="cpu")
    known = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(count):
            chosen = opened.model(known).logits[0, -1].argmax()
            known = torch.cat([known, chosen.view(1, 1)], dim=1)
    said = {"tokens": known[0, len(ids) :].tolist(), "ids": opened.tokenizer(text)["input_ids"]}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
