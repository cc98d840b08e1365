"""What `openvino_files.py` wrote in OpenVINO, for the contestant. Its interpreter needs openvino and numpy."""

import time
from pathlib import Path

import numpy as np
import openvino

from benchmarks.cpu.contestant import Facts, Spec
from benchmarks.machine import resident_bytes

FILE = "openvino_model.xml"


class OpenVinoReader:
    """`benchmarks.cpu.contestant.Reader`. Activations and cache are rounded as OpenVINO has it by default."""

    def __init__(self, spec: Spec):
        before, start = resident_bytes(), time.perf_counter()
        how = {"INFERENCE_NUM_THREADS": spec.threads, "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Core().compile_model(str(Path(spec.path) / FILE), "CPU", how)
        self._names = {name for one in model.inputs for name in one.names}
        self._request = model.create_infer_request()
        self._length = 0
        self.facts = Facts(time.perf_counter() - start, before, None)

    def begin(self, tokens: tuple[int, ...]) -> None:
        self._request.reset_state()
        self._length = 0
        self._read(tokens)

    def go_on(self, token: int) -> None:
        """Also finds the likeliest next token, as whoever writes with a model has to."""
        self._read((token,))

    def _read(self, tokens: tuple[int, ...]) -> None:
        first, self._length = self._length, self._length + len(tokens)
        given = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(first, self._length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer({name: value for name, value in given.items() if name in self._names})
        self._request.get_tensor("logits").data[0, -1].argmax()
