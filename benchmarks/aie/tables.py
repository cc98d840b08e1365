"""What three models cost on AMD's array.

    python -m benchmarks.aie.tables

rewrites the tables of docs/aie.md, between its two markers. With `--check` it writes nothing and fails if they are out
of date.
"""

from benchmarks.aie.models import BITS, GROUPINGS, LLAMA_2, LLAMA_3, MODELS, Model, model_cost
from benchmarks.docs import DOCS, between, keep
from qlinear.backends.aie.counters import cost
from qlinear.backends.aie.devices import DEVICES, PHX
from qlinear.backends.aie.tiling import tile_matmul

COMMAND = "python -m benchmarks.aie.tables"
BEGIN, END = f"<!-- begin: {COMMAND} -->", "<!-- end -->"
PROMPT = 256
HEAD_GROUP_SIZE = 32
REPORTED = (2.5, 4)  # tokens/s of Llama-2-7B on phx, RyzenAI-SW issue 100


def markdown(rows: list[dict[str, str]]) -> str:
    """A table of rows that name their columns; columns of numbers are right-aligned."""
    heads, cells = list(rows[0]), [list(row.values()) for row in rows]
    columns = zip(*cells, strict=True)
    aligns = ["---:" if all(set(cell) <= set("0123456789.-%") for cell in column) else "---" for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, aligns, *cells])


def token_table() -> str:
    rows = []
    for model in MODELS:
        for device in DEVICES.values():
            for grouping in GROUPINGS:
                counted = model_cost(model, device, grouping, 1, device.latency)
                rows.append(
                    {
                        "model": model.name,
                        "device": device.name,
                        "grouped": grouping,
                        "dispatches": str(counted.dispatches),
                        "GB moved": f"{counted.bytes_moved / 1e9:.2f}",
                        "useful MACs": f"{1 - counted.padding_waste:.1%}",
                        "transfer ms": f"{counted.transfer_seconds * 1e3:.1f}",
                        "compute ms": f"{counted.compute_seconds * 1e3:.1f}",
                        "overhead ms": f"{counted.overhead_seconds * 1e3:.1f}",
                        "modelled ms": f"{counted.modelled_seconds * 1e3:.1f}",
                    }
                )
    return markdown(rows)


def prompt_table() -> str:
    rows = []
    for model in MODELS:
        for device in DEVICES.values():
            for grouping in GROUPINGS[:2]:
                counted = model_cost(model, device, grouping, PROMPT, device.latency)
                rows.append(
                    {
                        "model": model.name,
                        "device": device.name,
                        "grouped": grouping,
                        "dispatches": str(counted.dispatches),
                        "GB moved": f"{counted.bytes_moved / 1e9:.1f}",
                        "useful MACs": f"{1 - counted.padding_waste:.1%}",
                        "modelled s": f"{counted.modelled_seconds:.2f}",
                    }
                )
    return markdown(rows)


def lm_head_table() -> str:
    rows = []
    for model in MODELS:
        for device in DEVICES.values():
            tiling = tile_matmul(device, 1, model.hidden, model.vocabulary, BITS, HEAD_GROUP_SIZE)
            counted = cost(tiling, device.latency)
            rows.append(
                {
                    "model": model.name,
                    "device": device.name,
                    "lm_head, K x N": f"{tiling.k} x {tiling.n}",
                    "kernel": f"{tiling.kernel.k} x {tiling.kernel.n}",
                    "dispatches": str(counted.dispatches),
                    "MB moved": f"{counted.bytes_moved / 1e6:.1f}",
                    "useful MACs": f"{tiling.useful:.1%}",
                    "modelled ms": f"{counted.modelled_seconds * 1e3:.2f}",
                }
            )
    return markdown(rows)


def layer_table(model: Model) -> str:
    rows = []
    for device in DEVICES.values():
        for name, k, n in dict.fromkeys((*model.layer("none"), *model.layer(GROUPINGS[-1]))):
            tiling = tile_matmul(device, 1, k, n, BITS, model.group_size)
            counted = cost(tiling, device.latency)
            rows.append(
                {
                    "device": device.name,
                    "matmul": name,
                    "K x N": f"{k} x {n}",
                    "kernel": f"{tiling.kernel.k} x {tiling.kernel.n}",
                    "dispatches": str(counted.dispatches),
                    "MB moved": f"{counted.bytes_moved / 1e6:.1f}",
                    "useful MACs": f"{tiling.useful:.1%}",
                    "modelled ms": f"{counted.modelled_seconds * 1e3:.2f}",
                }
            )
    return markdown(rows)


def published_table() -> str:
    """Llama-2-7B on phx under other figures, beside what was reported for whole tokens."""
    settings = [
        ("as above", {}),
        ("32 GB/s", {"read_bandwidth": 32e9, "write_bandwidth": 32e9}),
        ("42 GB/s", {"read_bandwidth": 42e9, "write_bandwidth": 42e9}),
        ("overhead of an empty kernel, 0.045 ms", {"dispatch_overhead": 0.045e-3}),
    ]
    rows = []
    slow, fast = (1e3 / rate for rate in REPORTED)
    for label, changes in settings:
        latency = PHX.latency.set(**changes)
        alone, grouped = (model_cost(LLAMA_2, PHX, g, 1, latency).modelled_seconds * 1e3 for g in GROUPINGS[:2])
        rows.append(
            {
                "figures": label,
                "modelled ms": f"{alone:.0f}",
                "modelled ms, q/k/v grouped": f"{grouped:.0f}",
                "tokens/s at most": f"{1e3 / grouped:.1f}",
                "ms left for the host": f"{fast - grouped:.0f}-{slow - grouped:.0f}",
            }
        )
    return markdown(rows)


def figures_table() -> str:
    return markdown(
        [
            {
                "figure": f"`{name}`",
                "device": device.name,
                "value": f"{figure.value:g}",
                "unit": figure.unit,
                "source": figure.source,
            }
            for device in DEVICES.values()
            for name, figure in device.latency.rows()
        ]
    )


def tables() -> str:
    return "\n\n".join(
        (
            "### A token",
            token_table(),
            f"### The lm_head, when it is quantized too (group {HEAD_GROUP_SIZE})",
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
    page = DOCS / "aie.md"
    keep(page, between(page.read_text(encoding="utf-8"), BEGIN, END, tables()), COMMAND)


if __name__ == "__main__":
    main()
