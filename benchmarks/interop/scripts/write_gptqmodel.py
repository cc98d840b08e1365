"""Run in an environment with GPTQModel: FLOATS PLACE GIVEN -> a checkpoint in PLACE, and what it writes there.

GIVEN: as JSON, `texts` to calibrate on, `prompts` as tokens, `count`, and `how`: what its `QuantizeConfig` takes.
The greedy tokens, and the seconds that quantizing took, as JSON on the last line.
"""

import json
import os
import sys
import time
from pathlib import Path

# Its pools of threads cannot be made for fewer processors than this, and it counts them as it is imported.
os.cpu_count = lambda counted=os.cpu_count: max(4, counted())

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: E402
from greedy import written  # noqa: E402

# The kernels that need no compiler: others are built for minutes when they are first asked for. Those of awq that it
# packs with unless it is told are for GPUs.
BACKENDS = {"gptq": BACKEND.GPTQ_TORCH, "awq": BACKEND.AWQ_TORCH}


def main(floats: str, place: str, given: dict) -> None:
    how, texts, seconds = given["how"], given["texts"], 0.0
    backend = BACKENDS[how.get("method", "gptq")]
    if not Path(place).is_dir():
        model = GPTQModel.load(floats, QuantizeConfig(**how), device="cpu")
        start = time.perf_counter()
        model.quantize(texts, batch_size=min(len(texts), 4), backend=backend)
        seconds = time.perf_counter() - start
        model.save(place)
    opened = GPTQModel.load(place, backend=backend, device="cpu")
    print(json.dumps({"tokens": written(opened.model, given["prompts"], given["count"]), "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))
