"""What a run found, in typed rows, from which tables and picture are made. Standard library only.

Rows hold what was measured and how much work that was. Everything taken in the same rounds is in one run, with the
machine's limits in those rounds; speeds, shares of the limits and ratios are made from that.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median, quantiles

from benchmarks.typed import to_json, typed

LAYOUT = 2  # of the JSON; one more with every change of it


class Limit(StrEnum):
    """What a machine has a limit of: bytes read, or products of a kind, each with its addition."""

    READ = "read"
    FP32 = "fp32"
    BF16 = "bf16"
    INT16 = "int16"
    INT8 = "int8"

    @property
    def unit(self) -> str:
        return "GB/s" if self is Limit.READ else "GFLOP/s"


class Kernel(StrEnum):
    """An implementation of one linear layer; the value is its name in tables and in JSON.

    W4, W3: ours as the fused decoder calls them; W4_INT8: the same with activations rounded to int8; W4_MATMUL: one
    call from Python a matmul, as modules make it.
    """

    W4 = "w4"
    W3 = "w3"
    W4_INT8 = "w4 int8"
    W4_MATMUL = "w4 matmul"
    INT4PACK = "torch int4pack"
    DENSE = "torch bf16"
    ORT_INT8 = "ORT level 4"
    ORT_FP32 = "ORT level 1"

    @property
    def is_ours(self) -> bool:
        return self in (Kernel.W4, Kernel.W3, Kernel.W4_INT8, Kernel.W4_MATMUL)


class Engine(StrEnum):
    """What runs a whole model: our fused decoder, the same with activations rounded to int8, the model's own modules on
    our kernels, or another program.
    """

    FUSED = "fused"
    INT8 = "fused int8"
    MODULES = "modules"
    LLAMA = "llama.cpp"
    IK = "ik_llama.cpp"
    OPENVINO = "OpenVINO"
    GENAI = "ORT GenAI"


@dataclass(frozen=True)
class Timed:
    """seconds: the median over the rounds; spread: (90th - 10th percentile) / median."""

    seconds: float
    spread: float

    @staticmethod
    def of(times: list[float]) -> "Timed":
        """times: two or more."""
        middle, deciles = median(times), quantiles(times, n=10)
        return Timed(middle, (deciles[8] - deciles[0]) / middle)


@dataclass(frozen=True)
class Speed:
    """gb_s, gflop_s: what has to be read and multiplied at least, over the time; of_read, of_peak: of the limits."""

    gb_s: float
    gflop_s: float
    of_read: float
    of_peak: float


@dataclass(frozen=True)
class Limits:
    """The machine's limits in some rounds. rates: GB/s or GFLOP/s, medians."""

    rates: dict[Limit, float]

    @property
    def bandwidth(self) -> float:
        return self.rates[Limit.READ]

    @property
    def fastest(self) -> Limit:
        """The kind of products of which there are the most a second, but for those of int8, which cost accuracy."""
        rest = (Limit.READ, Limit.INT8)
        return max((limit for limit in self.rates if limit not in rest), key=self.rates.__getitem__)

    @property
    def peak(self) -> float:
        return self.rates[self.fastest]

    def speed(self, size: float, operations: float, seconds: float, int8: bool = False) -> Speed:
        """size: in bytes; int8: whether the products are those, where the machine has any."""
        gb_s, gflop_s = size / seconds / 1e9, operations / seconds / 1e9
        peak = self.rates.get(Limit.INT8, self.peak) if int8 else self.peak
        return Speed(gb_s, gflop_s, gb_s / self.bandwidth, gflop_s / peak)


@dataclass(frozen=True)
class Shape:
    """Of a weight, `(N, K)` = (out_features, in_features)."""

    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.n} x {self.k}"


@dataclass(frozen=True)
class LinearRow:
    """One implementation's matmul. weight_bytes: as the weight lies packed, scales and zeros included."""

    kernel: Kernel
    weight_bytes: int
    taken: Timed


@dataclass(frozen=True)
class LinearRun:
    """One linear layer on `m` rows of activations, by every implementation in turns."""

    shape: Shape
    m: int
    group_size: int
    limits: Limits
    rows: tuple[LinearRow, ...]

    def row(self, kernel: Kernel) -> LinearRow | None:
        return next((row for row in self.rows if row.kernel is kernel), None)

    def speed(self, row: LinearRow) -> Speed:
        operations, int8 = 2 * self.m * self.shape.n * self.shape.k, row.kernel is Kernel.W4_INT8
        return self.limits.speed(row.weight_bytes, operations, row.taken.seconds, int8)


@dataclass(frozen=True)
class Way:
    """How a model is run. weights: how they are stored, in words for the tables."""

    engine: Engine
    weights: str

    def __str__(self) -> str:
        return f"{self.engine.value} {self.weights}"


@dataclass(frozen=True)
class ModelSize:
    """Of the model, whoever runs it: multiply-adds of a token in all blocks and in the head, bytes of a position's
    keys and values in bf16.
    """

    block_products: int
    head_products: int
    position_bytes: int


@dataclass(frozen=True)
class Start:
    """From the start of a process to its first token, the files in the disk cache; and what it then holds.

    first_token_s: after a prompt of 16 tokens; load_s: reading the file and packing it; new_memory_gb_s: what a process
    beside it got, writing as many bytes once, before each start; all three medians over `starts`. weight_bytes: as they
    lie in memory; cache_bytes: keys and values; runtime_bytes: resident before loading.
    """

    starts: int
    first_token_s: float
    load_s: float
    new_memory_gb_s: float
    stored_bytes: int
    weight_bytes: int
    cache_bytes: int
    runtime_bytes: int
    peak_bytes: int
    held_bytes: int

    @property
    def load_gb_s(self) -> float:
        return self.stored_bytes / self.load_s / 1e9

    @property
    def peak_over_needed(self) -> float:
        return self.peak_bytes / (self.weight_bytes + self.cache_bytes)


@dataclass(frozen=True)
class ModelRow:
    """One contestant. read_bytes: of the weights that a token reads; prompt, token: what reading one whole takes."""

    way: Way
    read_bytes: int
    prompt: Timed
    token: Timed
    start: Start


@dataclass(frozen=True)
class ModelRun:
    """One model, a prompt and its continuation, by every contestant in turns."""

    model: str
    prompt_tokens: int
    new_tokens: int
    size: ModelSize
    limits: Limits
    rows: tuple[ModelRow, ...]

    def decode(self, row: ModelRow) -> Speed:
        """Of a token: it reads the weights and, on average, the prompt's positions and half of the new ones."""
        positions = self.prompt_tokens + self.new_tokens / 2
        products = self.size.block_products + self.size.head_products
        size = row.read_bytes + positions * self.size.position_bytes
        return self.limits.speed(size, 2 * products, row.token.seconds, row.way.engine is Engine.INT8)

    def prefill(self, row: ModelRow) -> Speed:
        """Of the prompt: its last token alone goes through the head."""
        products = self.prompt_tokens * self.size.block_products + self.size.head_products
        size = row.read_bytes + self.prompt_tokens / 2 * self.size.position_bytes
        return self.limits.speed(size, 2 * products, row.prompt.seconds, row.way.engine is Engine.INT8)

    def rival(self) -> ModelRow | None:
        """llama.cpp's row."""
        return next((row for row in self.rows if row.way.engine is Engine.LLAMA), None)


@dataclass(frozen=True)
class Machine:
    """What it ran on. versions: of the libraries, by name."""

    processor: str
    threads: int
    instruction_set: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Report:
    """Everything that a run found."""

    layout: int
    machine: Machine
    linears: tuple[LinearRun, ...]
    models: tuple[ModelRun, ...]

    def sweep(self) -> list[LinearRun]:
        """The runs of the shape that was measured at the most M, by M; of two at one M the last."""
        shapes: dict[Shape, dict[int, LinearRun]] = {}
        for run in self.linears:
            shapes.setdefault(run.shape, {})[run.m] = run
        found = max(shapes.values(), key=len, default={})
        return [found[m] for m in sorted(found)]

    def write(self, path: Path) -> None:
        path.write_text(to_json(self, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> "Report":
        """Raises `ValueError`, in one line, for what is no report, or one of another layout."""
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            layout = given.get("layout", 1) if isinstance(given, dict) and "machine" in given else None
            if layout == LAYOUT:
                return typed(Report, given)
        except ValueError as error:
            raise ValueError(f"{path} is no report of this benchmark: {error}") from error
        if layout is None:
            raise ValueError(f"{path} is no report of this benchmark")
        raise ValueError(f"{path} is a report of layout {layout}, this version reads layout {LAYOUT}; measure again")
