"""Run in an environment with llama-cpp-python: FILE TEXT IDS COUNT -> the greedy tokens, as JSON on the last line."""

import json
import sys

import llama_cpp


def main(file: str, text: str, ids: list[int], count: int) -> None:
    model = llama_cpp.Llama(file, n_ctx=512, n_threads=2, verbose=False)
    tokens = [token for token, _ in zip(model.generate(ids, temp=0.0), range(count), strict=False)]
    said = {"tokens": tokens, "ids": model.tokenize(text.encode(), add_bos=True, special=True)}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
