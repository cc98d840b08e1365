"""One contestant in a process of its own: it loads a model once, then times a prompt and its continuation on demand.

    python -m benchmarks.contestant '{"kind": "fused", "path": DIRECTORY, "threads": 2, "context": 576}'

It prints one JSON line when the model is there and one for every job read from standard input. Only the standard
library is imported at the top: llama.cpp's interpreter may have nothing else.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

Opened = tuple[dict, Callable[[list[int]], object], Callable[[int], object]]


def resident(field: str = "VmRSS") -> int:
    """Bytes of memory that this process holds (VmRSS) or has held (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def open_ours(spec: dict) -> Opened:
    """A quantized checkpoint in the fused decoder, or in the model's own modules."""
    import ctypes

    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401 - a second or more that is not the loading's

    from checkpoints import store
    from qlinear.backends.cpu import CpuBackend
    from qlinear.decoder import ModuleDecoder
    from qlinear.fused import fused_decoder

    torch.set_num_threads(spec["threads"])
    backend = CpuBackend()
    before, start = resident(), time.perf_counter()
    loaded = store.load(Path(spec["path"]), backend, spec["kind"] == "fused")
    facts = dict(load_s=time.perf_counter() - start, runtime_bytes=before, impl=backend.name)
    facts |= sizes(loaded.model)
    ctypes.CDLL(None).malloc_trim(0)  # what loading left behind is not the decoder's
    if spec["kind"] == "fused":
        decoder, reason = fused_decoder(loaded.model, spec["context"])
        if decoder is None:
            raise SystemExit(reason)
    else:
        decoder = ModuleDecoder(loaded.model, spec["context"], static_cache=False)
    return facts, lambda tokens: decoder.prefill(torch.tensor(tokens)), lambda token: int(decoder.step(token).argmax())


def sizes(model) -> dict[str, int]:
    """Bytes of all weights and of those that a token reads, multiply-adds of a token, bytes of a position's cache."""
    from torch import nn

    from qlinear.replace import quantized_layers

    layers = quantized_layers(model)
    dense = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    read = sum(layer.prepared.nbytes for layer in layers.values()) + sum(d.weight.nbytes for d in dense.values())
    rest = {p.data_ptr(): p.nbytes for p in model.parameters()}  # norms, the embedding; once where it is the head too
    for module in dense.values():
        rest.pop(module.weight.data_ptr(), None)
    products = {name: m.in_features * m.out_features for name, m in [*layers.items(), *dense.items()]}
    head = products["lm_head"]
    config = model.config
    head_dim = model.model.layers[0].self_attn.head_dim
    return dict(
        weight_bytes=read + sum(rest.values()),
        read_bytes=read,
        block_products=sum(products.values()) - head,
        head_products=head,
        position_bytes=2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim,
    )


def open_llama(spec: dict) -> Opened:
    """A GGUF file in llama.cpp, through its C interface."""
    import llama_cpp as llama

    before, start = resident(), time.perf_counter()
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = spec["context"], 512, 512
    params.n_threads = params.n_threads_batch = spec["threads"]
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    model = llama.llama_model_load_from_file(spec["path"].encode(), llama.llama_model_default_params())
    context = llama.llama_init_from_model(model, params)
    facts = dict(load_s=time.perf_counter() - start, runtime_bytes=before, impl=f"llama.cpp {llama.__version__}")

    def read(tokens: list[int], keep=quiet) -> None:
        array = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(context)

    def prefill(tokens: list[int]) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        for first in range(0, len(tokens), 512):
            read(tokens[first : first + 512])

    return facts, prefill, lambda token: read([token])


def serve(spec: dict) -> None:
    facts, prefill, step = (open_llama if spec["kind"] == "llama.cpp" else open_ours)(spec)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        times = [time.perf_counter()]
        prefill(job["prompt"])
        times.append(time.perf_counter())
        for token in job["continuation"]:
            step(token)
            times.append(time.perf_counter())
        prefill_s, *steps = (after - before for before, after in zip(times, times[1:]))  # noqa: B905
        memory = dict(held_bytes=resident(), peak_bytes=resident("VmHWM"))
        print(json.dumps(dict(prefill_s=prefill_s, step_s=median(steps) if steps else None, **memory)), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
