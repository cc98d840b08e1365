"""Run in an environment with vLLM: DIRECTORY TEXT IDS COUNT -> the greedy tokens, as JSON on the last line."""

import json
import os
import sys


def main(directory: str, text: str, ids: list[int], count: int) -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    model = LLM(directory, max_model_len=256, enforce_eager=True)
    asked = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    (answer,) = model.generate({"prompt_token_ids": ids}, asked)
    said = {"tokens": list(answer.outputs[0].token_ids), "ids": model.get_tokenizer().encode(text)}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
