"""A small report with round numbers, for the tests of what is made of one."""

from benchmarks.cpu.report import (
    LAYOUT,
    Engine,
    Kernel,
    Limit,
    Limits,
    LinearRow,
    LinearRun,
    Machine,
    ModelRow,
    ModelRun,
    ModelSize,
    Report,
    Shape,
    Start,
    Timed,
    Way,
)

MACHINE = Machine("A Processor", 2, "avx2", {"torch": "2.0", "llama.cpp": "0.3"})
LIMITS = Limits({Limit.READ: 20.0, Limit.FP32: 100.0, Limit.INT16: 200.0})
FASTER = Limits({Limit.READ: 30.0, Limit.FP32: 120.0, Limit.INT16: 160.0})
SHAPE, OTHER = Shape(1000, 500), Shape(2000, 1000)
W4_BYTES, W3_BYTES = 280_000, 220_000


def linear(shape: Shape, m: int, limits: Limits = LIMITS, micros: float = 20.0) -> LinearRun:
    """Ours at 4 bits in `micros`, at 3 bits in half of that, by matmul in a fifth more, torch's two in two and ten."""
    scale = shape.n * shape.k // (SHAPE.n * SHAPE.k)
    taken = {
        Kernel.W4: (W4_BYTES, micros),
        Kernel.W3: (W3_BYTES, micros / 2),
        Kernel.W4_MATMUL: (W4_BYTES, micros * 1.2),
        Kernel.INT4PACK: (290_000, micros * 2),
        Kernel.DENSE: (1_000_000, micros * 10),
    }
    rows = [LinearRow(kernel, size * scale, Timed(us * 1e-6, 0.1)) for kernel, (size, us) in taken.items()]
    return LinearRun(shape, m, 100, limits, tuple(rows))


def start(**changes: float) -> Start:
    given = dict(
        starts=3, first_token_s=1.5, load_s=0.25, new_memory_gb_s=2.0, stored_bytes=50_000_000, weight_bytes=80_000_000,
        cache_bytes=20_000_000, runtime_bytes=390_000_000, peak_bytes=150_000_000, held_bytes=140_000_000,
    )  # fmt: skip
    return Start(**given | changes)


# 10 positions of 1 MB; a token multiplies by 90 + 10 million weights.
MODEL = ModelRun(
    "tiny",
    prompt_tokens=8,
    new_tokens=4,
    size=ModelSize(block_products=90_000_000, head_products=10_000_000, position_bytes=1_000_000),
    limits=LIMITS,
    rows=(
        ModelRow(Way(Engine.FUSED, "w4"), 60_000_000, Timed(0.02, 0.05), Timed(0.005, 0.1), start()),
        ModelRow(Way(Engine.LLAMA, "Q4_0"), 70_000_000, Timed(0.05, 0.01), Timed(0.0175, 0.2), start()),
    ),
)


def report(*linears: LinearRun, models: tuple[ModelRun, ...] = ()) -> Report:
    return Report(LAYOUT, MACHINE, linears, models)


WHOLE = report(linear(SHAPE, 1), linear(OTHER, 1, FASTER, 100.0), linear(SHAPE, 128, micros=1000.0), models=(MODEL,))
