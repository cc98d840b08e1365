"""Run in an environment with llama-cpp-python: FILE WINDOWS THREADS -> how unlikely each window is, as JSON on a line.

WINDOWS: a JSON file with lists of tokens; of each list all but the first are predicted. In nats, summed.
"""

import json
import sys

import llama_cpp
import numpy


def main(file: str, windows: list[list[int]], threads: int) -> None:
    context = max(map(len, windows))
    counts = dict(n_threads=threads, n_threads_batch=threads)
    model = llama_cpp.Llama(file, n_ctx=context, n_batch=512, logits_all=True, verbose=False, **counts)
    sums = []
    for window in windows:
        model.reset()
        model.eval(window)
        logits = model.scores[: len(window) - 1].astype(numpy.float64)
        highest = logits.max(-1)
        norm = numpy.log(numpy.exp(logits - highest[:, None]).sum(-1)) + highest
        sums.append(float((norm - logits[numpy.arange(len(logits)), window[1:]]).sum()))
        print(len(sums), file=sys.stderr, flush=True)
    print(json.dumps({"tokens": [], "nats": sums}))


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as opened:
        main(sys.argv[1], json.load(opened), int(sys.argv[3]))
