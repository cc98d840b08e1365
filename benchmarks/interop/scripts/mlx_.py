"""Run in an environment with mlx-lm: DIRECTORY TEXT IDS COUNT -> the greedy tokens, as JSON on the last line."""

import json
import sys

import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step


def main(directory: str, text: str, ids: list[int], count: int) -> None:
    model, tokenizer = load(directory)
    tokens = [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=count)]
    said = {"tokens": tokens, "ids": list(tokenizer.encode(text))}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
