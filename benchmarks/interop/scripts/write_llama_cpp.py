"""Run in an environment with llama-cpp-python: FILE PLACE GIVEN -> llama.cpp's Q4_0 of a GGUF file, in PLACE.

GIVEN: as JSON, `prompts` as tokens and `count`. The greedy tokens, as JSON on the last line.
"""

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp


def main(file: str, place: str, prompts: list[list[int]], count: int) -> None:
    asked = llama_cpp.llama_model_quantize_default_params()
    asked.ftype, asked.pure, asked.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True, True
    if llama_cpp.llama_model_quantize(file.encode(), place.encode(), ctypes.byref(asked)):
        sys.exit(f"llama.cpp does not quantize {file}")
    model = llama_cpp.Llama(place, n_ctx=512, n_threads=2, verbose=False)
    answers = [
        [token for token, _ in zip(model.generate(ids, temp=0.0), range(count), strict=False)] for ids in prompts
    ]
    print(json.dumps({"tokens": answers}))


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    main(sys.argv[1], sys.argv[2], given["prompts"], given["count"])
