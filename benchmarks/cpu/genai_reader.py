"""What `genai_files.py` wrote in ONNX Runtime GenAI, for the contestant. Its interpreter needs onnxruntime-genai."""

import json
import time

import onnxruntime_genai as genai

from benchmarks.cpu.contestant import Facts, Spec
from benchmarks.machine import resident_bytes


class GenaiReader:
    """`benchmarks.cpu.contestant.Reader`."""

    def __init__(self, spec: Spec):
        before, start = resident_bytes(), time.perf_counter()
        config = genai.Config(spec.path)
        threads = {"session_options": {"intra_op_num_threads": spec.threads}}
        config.overlay(json.dumps({"model": {"decoder": threads}}))
        self._model, self._room = genai.Model(config), spec.context
        self.facts = Facts(time.perf_counter() - start, before, None)

    def begin(self, tokens: tuple[int, ...]) -> None:
        params = genai.GeneratorParams(self._model)
        params.set_search_options(max_length=self._room + 1)
        self._generator = genai.Generator(self._model, params)
        self._read(tokens)

    def go_on(self, token: int) -> None:
        """Also finds the likeliest next token, as whoever writes with a model has to."""
        self._read((token,))

    def _read(self, tokens: tuple[int, ...]) -> None:
        self._generator.append_tokens(list(tokens))
        self._generator.get_logits()[0, -1].argmax()
