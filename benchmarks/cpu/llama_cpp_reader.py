"""A GGUF file in llama.cpp, through its C interface, for the contestant. Its interpreter needs nothing else."""

import time

import llama_cpp as llama

from benchmarks.cpu.contestant import Facts, Spec
from benchmarks.machine import resident_bytes

BATCH = 512  # tokens of a prompt in one call
FLASH_ATTENTION = 1  # LLAMA_FLASH_ATTN_TYPE_ENABLED
Q8_0 = 8  # GGML_TYPE_Q8_0


class LlamaCppReader:
    """`benchmarks.cpu.contestant.Reader`."""

    def __init__(self, spec: Spec):
        before, start = resident_bytes(), time.perf_counter()
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = spec.context, BATCH, BATCH
        params.flash_attn_type = FLASH_ATTENTION
        if spec.kv_bits == 8:
            params.type_k = params.type_v = Q8_0
        params.n_threads = params.n_threads_batch = spec.threads
        self._quiet = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(self._quiet, None)
        self._model = llama.llama_model_load_from_file(spec.path.encode(), llama.llama_model_default_params())
        self._context = llama.llama_init_from_model(self._model, params)
        self.facts = Facts(time.perf_counter() - start, before, None)

    def begin(self, tokens: tuple[int, ...]) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        for first in range(0, len(tokens), BATCH):
            self._read(tokens[first : first + BATCH])

    def go_on(self, token: int) -> None:
        self._read((token,))

    def _read(self, tokens: tuple[int, ...]) -> None:
        array = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(self._context, llama.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(self._context)
