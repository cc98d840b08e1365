"""What three models cost on AMD's array, from their dimensions alone, and the picture of a layer's tiling.

    python -m benchmarks.aie_tables

rewrites the tables of docs/aie.md, between its two markers, and docs/aie-tiling.svg. Needs no weights. With `--check`
it writes nothing and fails if either file is out of date.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.aie_picture import tiling
from qlinear.backends.aie.counters import Counters, cost
from qlinear.backends.aie.devices import DEVICES, PHX, Device, LatencyModel
from qlinear.backends.aie.tiling import tile_matmul

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- begin: python -m benchmarks.aie_tables -->", "<!-- end -->"
GROUPINGS = ("none", "q/k/v", "q/k/v, gate/up")
PROMPT = 256


@dataclass(frozen=True)
class Model:
    """The dimensions of a decoder's matmuls (from the models' config.json) and the group size they are run with."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    key_value: int
    vocabulary: int
    group_size: int

    def layer(self, grouping: str) -> list[tuple[str, int, int]]:
        """The matmuls of one layer, `(name, K, N)`."""
        q, kv, mlp = self.hidden, self.key_value, self.intermediate
        attention = [("q_proj", q, q), ("k_proj", q, kv), ("v_proj", q, kv)]
        gate_up = [("gate_proj", q, mlp), ("up_proj", q, mlp)]
        if grouping != "none":
            attention = [("q/k/v", q, q + 2 * kv)]
        if grouping == "q/k/v, gate/up":
            gate_up = [("gate/up", q, 2 * mlp)]
        return [*attention, ("o_proj", q, q), *gate_up, ("down_proj", mlp, q)]


# SmolLM2's 576 channels are no multiple of 128; groups of 64 run as 32.
MODELS = (
    Model("SmolLM2-135M", 30, 576, 1536, 192, 49152, 64),
    Model("Llama-2-7B", 32, 4096, 11008, 4096, 32000, 128),
    Model("Llama-3-8B", 32, 4096, 14336, 1024, 128256, 128),
)
LLAMA_2, LLAMA_3 = MODELS[1:]


def model_cost(model: Model, device: Device, grouping: str, rows: int, latency: LatencyModel) -> Counters:
    """Every matmul of the decoder layers for `rows` tokens at once; without the lm_head."""
    tilings = [tile_matmul(device, rows, k, n, 4, model.group_size) for _, k, n in model.layer(grouping)]
    return sum((cost(tiling, latency) for tiling in tilings), Counters()) * model.layers


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A markdown table; columns of numbers are right-aligned."""
    columns = zip(*rows, strict=True)
    aligns = ["---:" if all(set(cell) <= set("0123456789.-%") for cell in column) else "---" for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, aligns, *rows])


def token_table() -> str:
    rows = []
    for model in MODELS:
        for device in DEVICES.values():
            for grouping in GROUPINGS:
                c = model_cost(model, device, grouping, 1, device.latency)
                rows.append(
                    [
                        model.name,
                        device.name,
                        grouping,
                        str(c.dispatches),
                        f"{c.bytes_moved / 1e9:.2f}",
                        f"{1 - c.padding_waste:.1%}",
                        f"{c.transfer_seconds * 1e3:.1f}",
                        f"{c.compute_seconds * 1e3:.1f}",
                        f"{c.overhead_seconds * 1e3:.1f}",
                        f"{c.modelled_seconds * 1e3:.1f}",
                    ]
                )
    heads = [
        "model",
        "device",
        "grouped",
        "dispatches",
        "GB moved",
        "useful MACs",
        "transfer ms",
        "compute ms",
        "overhead ms",
        "modelled ms",
    ]
    return table(heads, rows)


def prompt_table() -> str:
    rows = []
    for model in MODELS:
        for device in DEVICES.values():
            for grouping in GROUPINGS[:2]:
                c = model_cost(model, device, grouping, PROMPT, device.latency)
                rows.append(
                    [
                        model.name,
                        device.name,
                        grouping,
                        str(c.dispatches),
                        f"{c.bytes_moved / 1e9:.1f}",
                        f"{1 - c.padding_waste:.1%}",
                        f"{c.modelled_seconds:.2f}",
                    ]
                )
    return table(["model", "device", "grouped", "dispatches", "GB moved", "useful MACs", "modelled s"], rows)


def lm_head_table() -> str:
    rows = []
    for model in MODELS:
        for device in DEVICES.values():
            tiling = tile_matmul(device, 1, model.hidden, model.vocabulary, 4, 32)
            c = cost(tiling, device.latency)
            rows.append(
                [
                    model.name,
                    device.name,
                    f"{tiling.k} x {tiling.n}",
                    f"{tiling.kernel.k} x {tiling.kernel.n}",
                    str(c.dispatches),
                    f"{c.bytes_moved / 1e6:.1f}",
                    f"{tiling.useful:.1%}",
                    f"{c.modelled_seconds * 1e3:.2f}",
                ]
            )
    heads = ["model", "device", "lm_head, K x N", "kernel", "dispatches", "MB moved", "useful MACs", "modelled ms"]
    return table(heads, rows)


def layer_table(model: Model) -> str:
    rows = []
    for device in DEVICES.values():
        for name, k, n in dict.fromkeys((*model.layer("none"), *model.layer(GROUPINGS[-1]))):
            tiling = tile_matmul(device, 1, k, n, 4, model.group_size)
            c = cost(tiling, device.latency)
            rows.append(
                [
                    device.name,
                    name,
                    f"{k} x {n}",
                    f"{tiling.kernel.k} x {tiling.kernel.n}",
                    str(c.dispatches),
                    f"{c.bytes_moved / 1e6:.1f}",
                    f"{tiling.useful:.1%}",
                    f"{c.modelled_seconds * 1e3:.2f}",
                ]
            )
    heads = ["device", "matmul", "K x N", "kernel", "dispatches", "MB moved", "useful MACs", "modelled ms"]
    return table(heads, rows)


def published_table() -> str:
    """Llama-2-7B on phx under other figures, beside what was reported for whole tokens."""
    settings = [
        ("as above", {}),
        ("32 GB/s", {"read_bandwidth": 32e9, "write_bandwidth": 32e9}),
        ("42 GB/s", {"read_bandwidth": 42e9, "write_bandwidth": 42e9}),
        ("overhead of an empty kernel, 0.045 ms", {"dispatch_overhead": 0.045e-3}),
    ]
    rows = []
    for label, changes in settings:
        latency = PHX.latency.set(**changes)
        times = [model_cost(LLAMA_2, PHX, g, 1, latency).modelled_seconds for g in GROUPINGS[:2]]
        left = f"{1e3 / 4 - times[1] * 1e3:.0f}-{1e3 / 2.5 - times[1] * 1e3:.0f}"
        rows.append([label, *(f"{t * 1e3:.0f}" for t in times), f"{1 / times[1]:.1f}", left])
    heads = ["figures", "modelled ms", "modelled ms, q/k/v grouped", "tokens/s at most", "ms left for the host"]
    return table(heads, rows)


def figures_table() -> str:
    rows = [
        [f"`{name}`", device.name, f"{figure.value:g}", figure.unit, figure.source]
        for device in DEVICES.values()
        for name, figure in device.latency.rows()
    ]
    return table(["figure", "device", "value", "unit", "source"], rows)


def tables() -> str:
    return "\n\n".join(
        (
            "### A token",
            token_table(),
            "### The lm_head, when it is quantized too (group 32)",
            lm_head_table(),
            f"### A prompt of {PROMPT} tokens",
            prompt_table(),
            "### One layer of Llama-3-8B, matmul by matmul",
            layer_table(LLAMA_3),
            "### Llama-2-7B on phx against the published 2.5-4 tokens/s (250-400 ms)",
            published_table(),
            "### The figures of the model",
            figures_table(),
        )
    )


def main() -> None:
    page, picture = DOCS / "aie.md", DOCS / "aie-tiling.svg"
    old = page.read_text()
    before, rest = old.split(BEGIN)
    new = f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"
    drawing = tiling(tile_matmul(PHX, 1, LLAMA_3.intermediate, LLAMA_3.hidden, 4, 128), "Llama-3-8B down_proj")
    if "--check" not in sys.argv:
        page.write_text(new)
        picture.write_text(drawing)
    elif new != old or drawing != picture.read_text():
        sys.exit("docs/aie.md or docs/aie-tiling.svg is out of date: run python -m benchmarks.aie_tables")


if __name__ == "__main__":
    main()
