"""One linear layer, by our kernels and by those of ONNX Runtime and torch, in turns, beside the machine's limits.

Every implementation multiplies by a chain of matrices too large for the caches; rounds alternate between them, with a
pause in between, so that one runtime's spinning threads do not slow the next. Our kernels are called as the fused
decoder calls them, results in memory that is there, and once more through `matmul`, which is how modules do it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor

from benchmarks.roofs import Roof
from benchmarks.rows import Row, compare, limits_of, roof_rows, spread
from qlinear.backends import native
from qlinear.backends.cpu import CpuBackend
from qlinear.grid import GridWeight
from qlinear.packing import PackedWeight

# Bytes of 4-bit codes in a chain. Eight times a 32 MB cache leaves little to be found there when memory is the limit;
# where arithmetic is, twice does.
CHAIN_BYTES, SHORT_CHAIN_BYTES = 256 << 20, 96 << 20
MANY_ROWS = 32
PAUSE = 0.02  # seconds: longer than the spinning of libgomp and of ONNX Runtime's threads
LONG = 0.1  # seconds: a job that warms itself up
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One implementation at one shape: `passes` runs the whole chain of `count` matrices once."""

    impl: str
    bits: int
    weight_bytes: int
    count: int
    passes: Callable[[Tensor], object]


def random_weight(n: int, k: int, bits: int, group: int) -> GridWeight:
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (n, k // group), dtype=torch.uint8)
    return GridWeight(codes, zeros, (torch.rand(n, k // group) * 0.01 + 0.001).bfloat16(), bits)


def ours(weight: GridWeight, count: int) -> list[Case]:
    backend = CpuBackend()  # with an arena of its own
    multiply = native.library().awq_linear
    packed = PackedWeight.pack(weight)
    chain = [backend.prepare(packed, None) for _ in range(count)]
    n, k = packed.shape

    def passes(x: Tensor) -> None:
        y = x.new_empty(len(x), n)
        x_at, y_at, rows, dtype = x.data_ptr(), y.data_ptr(), len(x), native.DTYPES[x.dtype]
        for w in chain:
            multiply(w.address, x_at, rows, k, dtype, y_at)

    def matmuls(x: Tensor) -> list[Tensor]:
        return [backend.matmul(x, w) for w in chain]

    impl = f"{backend.name} w{weight.bits}"
    jobs = [(impl, passes), (f"{impl} matmul", matmuls)]
    return [Case(name, weight.bits, chain[0].nbytes, count, job) for name, job in jobs]


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


def peers() -> dict[str, Callable[[GridWeight, int], Case]]:
    """What is compared with, by name, as far as it is installed."""
    found = {"int4pack": torch_int4pack, "bf16": torch_bf16}
    if find_spec("onnx") and find_spec("onnxruntime"):
        found["onnxruntime4"] = lambda weight, count: onnxruntime(weight, count, 4)
        found["onnxruntime1"] = lambda weight, count: onnxruntime(weight, count, 1)
    return found


def cases(n: int, k: int, group: int, chain_bytes: int) -> list[Case]:
    count = max(2, -(-chain_bytes // (n * k // 2)))
    four = random_weight(n, k, 4, group)
    (four_bits, called), (three_bits, _) = ours(four, count), ours(random_weight(n, k, 3, group), count)
    made = [four_bits, three_bits, called]
    return made + [make(four, count) for make in peers().values()]


def alternate(jobs: list[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Times of each job, taken in turns until `seconds` have passed, at least LEAST_ROUNDS of each."""
    times: list[list[float]] = [[] for _ in jobs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < LEAST_ROUNDS:
        for job, taken in zip(jobs, times, strict=True):
            time.sleep(PAUSE)
            if not taken or taken[-1] < LONG:
                job()
            start = time.perf_counter()
            job()
            taken.append(time.perf_counter() - start)
    return times


def measure(
    n: int, k: int, m: int, group: int, contestants: list[Case], limits: list[Roof], seconds: float
) -> list[Row]:
    """One row for each limit of the machine, and one for each implementation taken in the same rounds."""
    x = torch.randn(m, k).bfloat16()
    jobs = [roof.run for roof in limits] + [lambda case=case: case.passes(x) for case in contestants]
    times = alternate(jobs, seconds)
    machine = roof_rows(limits, times[: len(limits)], m, n, k)
    bandwidth, peak = limits_of(machine)
    rows = []
    for case, taken in zip(contestants, times[len(limits) :], strict=True):
        per_call = median(taken) / case.count
        gb_s, gflop_s = case.weight_bytes / per_call / 1e9, 2 * m * n * k / per_call / 1e9
        shares = gb_s / bandwidth, gflop_s / peak
        group_size = group if case.bits < 16 else 0
        rows.append(
            Row("linear", case.impl, case.bits, group_size, m, n, k, per_call, spread(taken), gb_s, gflop_s, *shares)
        )
    return machine + compare(rows)


def sweep(n: int, k: int, all_m: list[int], group: int, limits: list[Roof], seconds: float):
    """Rows for each M in turn, for as long as it takes."""
    for chain_bytes, some_m in (
        (CHAIN_BYTES, [m for m in all_m if m < MANY_ROWS]),
        (SHORT_CHAIN_BYTES, [m for m in all_m if m >= MANY_ROWS]),
    ):
        contestants = cases(n, k, group, chain_bytes) if some_m else []
        for m in some_m:
            with torch.inference_mode():
                yield measure(n, k, m, group, contestants, limits, seconds)
