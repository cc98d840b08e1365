"""Our linear kernels beside those of ONNX Runtime and torch, and beside what the machine can do at best.

    python -m benchmarks.kernels --threads 2 --json kernels.json

Every implementation multiplies by a chain of matrices too large for the caches; rounds alternate between them, with a
pause in between, so that one runtime's spinning threads do not slow the next. Figures are medians over the rounds.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.roofs import Roof, roofs
from qlinear.backends.cpu import CpuBackend
from qlinear.grid import GridWeight
from qlinear.packing import PackedWeight

SHAPES = "4096x4096,11008x4096,4096x11008,32000x4096,5632x2048"
CHAIN_BYTES = 256 << 20  # of 4-bit codes: eight times a 32 MB cache, so that little of it is found there
PAUSE = 0.02  # seconds: longer than the spinning of libgomp and of ONNX Runtime's threads


@dataclass(frozen=True)
class Case:
    """One implementation at one shape: `passes` runs the whole chain of `count` matrices once."""

    impl: str
    bits: int
    weight_bytes: int
    count: int
    passes: Callable[[Tensor], object]


@dataclass
class Row:
    """One line of the result; shares and ratios are of medians, `spread` is (90th - 10th percentile) / median."""

    what: str
    impl: str
    bits: int
    group_size: int
    m: int
    n: int
    k: int
    seconds: float
    spread: float
    gb_s: float
    gflop_s: float
    share_of_bandwidth: float
    share_of_peak: float
    ratio_to: dict[str, float] = field(default_factory=dict)


def random_weight(n: int, k: int, bits: int, group: int) -> GridWeight:
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (n, k // group), dtype=torch.uint8)
    return GridWeight(codes, zeros, (torch.rand(n, k // group) * 0.01 + 0.001).bfloat16(), bits)


def ours(weight: GridWeight, count: int) -> Case:
    backend = CpuBackend()  # with an arena of its own
    packed = PackedWeight.pack(weight)
    chain = [backend.prepare(packed, None) for _ in range(count)]
    impl = f"{backend.name} w{weight.bits}"
    return Case(impl, weight.bits, chain[0].nbytes, count, lambda x: [backend.matmul(x, w) for w in chain])


def torch_int4pack(weight: GridWeight, count: int) -> Case:
    aten = torch.ops.aten
    group = weight.group_size
    words = aten._convert_weight_to_int4pack_for_cpu(weight.codes.int(), 1)
    # its zero is a value to add, (8 - zero) * scale
    offsets = (8 - weight.zeros.float()) * weight.scales.float()
    params = torch.stack([weight.scales.t(), offsets.t().bfloat16()], -1).contiguous()
    chain = [(words.clone(), params.clone()) for _ in range(count)]
    size = words.nbytes + params.nbytes
    multiply = aten._weight_int4pack_mm_for_cpu
    return Case("torch int4pack", 4, size, count, lambda x: [multiply(x, w, group, p) for w, p in chain])


def torch_bf16(weight: GridWeight, count: int) -> Case:
    dense = weight.decode(torch.bfloat16)
    chain = [dense.clone() for _ in range(max(2, count // 4))]
    linear = torch.nn.functional.linear
    return Case("torch bf16", 16, dense.nbytes, len(chain), lambda x: [linear(x, w) for w in chain])


def onnxruntime(weight: GridWeight, count: int, level: int) -> Case:
    """MatMulNBits on float32 activations; `level` 1 computes in float32, 4 in int8."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    n, k = weight.codes.shape
    group = weight.group_size
    nibbles = (weight.codes[:, ::2] | weight.codes[:, 1::2] << 4).view(n, k // group, group // 2)
    zeros = torch.nn.functional.pad(weight.zeros, (0, weight.zeros.shape[1] % 2))
    tensors = {
        "b": nibbles,
        "s": weight.scales.float().reshape(-1),
        "z": (zeros[:, ::2] | zeros[:, 1::2] << 4).reshape(-1),
    }
    attributes = dict(K=k, N=n, bits=4, block_size=group, accuracy_level=level)
    nodes, initializers = [], []
    for i in range(count):
        # equal matrices would be merged into one
        tensors["b"] = nibbles ^ (17 * i % 256)
        for name, tensor in tensors.items():
            initializers.append(numpy_helper.from_array(tensor.numpy(), f"{name}{i}"))
        inputs = ["x", f"b{i}", f"s{i}", f"z{i}"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{i}"], domain="com.microsoft", **attributes))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["m", n]) for i in range(count)],
        initializers,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()

    def passes(x: Tensor) -> None:
        binding.bind_cpu_input("x", x.float().numpy())
        for i in range(count):
            binding.bind_output(f"y{i}")
        session.run_with_iobinding(binding)

    size = sum(t.nbytes for t in tensors.values())
    return Case(f"onnxruntime level {level}", 4, size, count, passes)


def cases(n: int, k: int, group: int, peers: list[str]) -> list[Case]:
    count = max(2, -(-CHAIN_BYTES // (n * k // 2)))
    four = random_weight(n, k, 4, group)
    made = [ours(four, count), ours(random_weight(n, k, 3, group), count)]
    makers = {
        "onnxruntime4": lambda: onnxruntime(four, count, 4),
        "onnxruntime1": lambda: onnxruntime(four, count, 1),
        "int4pack": lambda: torch_int4pack(four, count),
        "bf16": lambda: torch_bf16(four, count),
    }
    return made + [makers[peer]() for peer in peers]


def alternate(jobs: list[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Times of each job, taken in turns until `seconds` have passed, at least five of each."""
    times: list[list[float]] = [[] for _ in jobs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for job, taken in zip(jobs, times, strict=True):
            time.sleep(PAUSE)
            job()
            start = time.perf_counter()
            job()
            taken.append(time.perf_counter() - start)
    return times


def measure(
    n: int, k: int, m: int, group: int, implementations: list[Case], limits: list[Roof], seconds: float
) -> list[Row]:
    """One row for each implementation, and one for each limit of the machine taken in the same rounds."""
    x = torch.randn(m, k).bfloat16()
    jobs = [roof.run for roof in limits] + [lambda case=case: case.passes(x) for case in implementations]
    times = alternate(jobs, seconds)
    limit: dict[str, float] = {}
    for roof, taken in zip(limits, times, strict=False):
        limit[roof.name] = max(limit.get(roof.name, 0), roof.amount / statistics.median(taken))
    rows = []
    for case, taken in zip(implementations, times[len(limits) :], strict=True):
        median = statistics.median(taken)
        deciles = statistics.quantiles(taken, n=10)
        per_call = median / case.count
        gb_s, gflop_s = case.weight_bytes / per_call / 1e9, 2 * m * n * k / per_call / 1e9
        shares = gb_s * 1e9 / limit["read"], gflop_s * 1e9 / limit["bf16"]
        spread = (deciles[8] - deciles[0]) / median
        rows.append(Row("linear", case.impl, case.bits, group, m, n, k, per_call, spread, gb_s, gflop_s, *shares))
    for row in rows:
        row.ratio_to = {other.impl: other.seconds / row.seconds for other in rows if other is not row}
    return [roof_row(name, rate / 1e9) for name, rate in limit.items()] + rows


def roof_row(name: str, giga: float) -> Row:
    is_read = name == "read"
    return Row(f"roof {name}", "machine", 0, 0, 0, 0, 0, 0, 0, giga * is_read, giga * (not is_read), 1, 1)


def show(rows: list[Row]) -> None:
    table = Table()
    table.add_column("implementation")
    for heading in ("N x K", "M", "us", "spread", "GB/s", "of read", "GFLOP/s", "of peak"):
        table.add_column(heading, justify="right")
    table.add_column("others / this")
    for r in rows:
        if r.impl == "machine":
            table.add_row(r.what, "", "", "", "", f"{r.gb_s:.1f}", "", f"{r.gflop_s:.0f}", "", "")
            continue
        speed = f"{r.gb_s:.1f}", f"{r.share_of_bandwidth:.2f}", f"{r.gflop_s:.0f}", f"{r.share_of_peak:.2f}"
        ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in r.ratio_to.items() if r.impl.startswith("cpu/"))
        table.add_row(r.impl, f"{r.n}x{r.k}", str(r.m), f"{r.seconds * 1e6:.0f}", f"{r.spread:.0%}", *speed, ratios)
    Console(width=200).print(table)


@click.command(help=__doc__.splitlines()[0])
@click.option("--threads", default=2, show_default=True)
@click.option("--group-size", default=128, show_default=True)
@click.option("--shapes", default=SHAPES, show_default=True, help="NxK, comma-separated")
@click.option("--rows", default="1", show_default=True, help="activation rows M, comma-separated")
@click.option("--peers", default="onnxruntime4,onnxruntime1,int4pack,bf16", show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="for each shape and M")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True))
def main(
    threads: int, group_size: int, shapes: str, rows: str, peers: str, seconds: float, json_file: str | None
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    limits = roofs()
    result = []
    with torch.inference_mode():
        for shape in shapes.split(","):
            n, k = map(int, shape.split("x"))
            implementations = cases(n, k, group_size, [peer for peer in peers.split(",") if peer])
            for m in map(int, rows.split(",")):
                measured = measure(n, k, m, group_size, implementations, limits, seconds)
                show(measured)
                result += measured
    if json_file:
        with open(json_file, "w") as file:
            json.dump([asdict(row) for row in result], file, indent=1)


if __name__ == "__main__":
    main()
