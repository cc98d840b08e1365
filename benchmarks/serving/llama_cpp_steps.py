"""Steps of several texts in llama.cpp, as its server takes them: by its C interface, in an interpreter of its own.

    python llama_cpp_steps.py FILE.gguf 1,4,8 ROUNDS PAST STEPS

Prints as JSON, for each number of texts, tokens a second of a core's own time, one a round: of the quickest of some
steps.
"""

import json
import sys
import time

import llama_cpp as llama


class Stepper:
    """One thread, which is the caller."""

    def __init__(self, path: str, texts: int, past: int):
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = texts * 2 * past, texts, texts * past
        params.n_threads = params.n_threads_batch = 1
        self._quiet = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(self._quiet, None)
        model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        self._context, self._past = llama.llama_init_from_model(model, params), past
        self._batch = llama.llama_batch_init(texts * past, 0, 1)
        self._read([(100 + 7 * text + place, place, text) for text in range(texts) for place in range(past)], False)

    def seconds(self, texts: int) -> float:
        begin = time.thread_time()
        self._read([(100 + text, self._past, text) for text in range(texts)], True)
        taken = time.thread_time() - begin
        memory = llama.llama_get_memory(self._context)
        for text in range(texts):
            llama.llama_memory_seq_rm(memory, text, self._past, -1)
        return taken

    def _read(self, tokens: list[tuple[int, int, int]], wanted: bool) -> None:
        """tokens: (token, position, text) each; wanted: whether logits are."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token, position, text) in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, position, 1
            batch.seq_id[index][0], batch.logits[index] = text, int(wanted)
        if llama.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(self._context)


def main(path: str, texts: str, rounds: str, past: str, steps: str) -> None:
    counts = [int(count) for count in texts.split(",")]
    stepper = Stepper(path, max(counts), int(past))
    rates = {count: [] for count in counts}
    for _ in range(int(rounds)):
        turns = [[stepper.seconds(count) for count in counts] for _ in range(int(steps))]
        for count, quickest in zip(counts, map(min, zip(*turns, strict=True)), strict=True):
            rates[count].append(count / quickest)
    print(json.dumps(rates))


if __name__ == "__main__":
    main(*sys.argv[1:])
