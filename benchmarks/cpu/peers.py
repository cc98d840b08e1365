"""One linear layer by other people's kernels: torch's and, where it is installed, ONNX Runtime's."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.cpu.report import Kernel
from qlinear.grid import GridWeight


@dataclass(frozen=True)
class Case:
    """One implementation at one shape: `passes(x)` runs a whole chain of `count` matrices once."""

    kernel: Kernel
    weight_bytes: int
    count: int
    passes: Callable[[Tensor], object]


Maker = Callable[[GridWeight, int], Case]


def has_onnxruntime() -> bool:
    return find_spec("onnx") is not None and find_spec("onnxruntime") is not None


def peers() -> list[Maker]:
    """What makes a case of a 4-bit weight and a count, for every peer that is installed."""
    found: list[Maker] = [torch_int4pack, torch_bf16]
    if has_onnxruntime():
        found += [
            lambda weight, count: onnxruntime(weight, count, Kernel.ORT_INT8),
            lambda weight, count: onnxruntime(weight, count, Kernel.ORT_FP32),
        ]
    return found


def torch_int4pack(weight: GridWeight, count: int) -> Case:
    aten = torch.ops.aten
    group = weight.group_size
    words = aten._convert_weight_to_int4pack_for_cpu(weight.codes.int(), 1)
    # its zero is a value to add, (8 - zero) * scale
    offsets = (8 - weight.zeros.float()) * weight.scales.float()
    params = torch.stack([weight.scales.t(), offsets.t().bfloat16()], -1).contiguous()
    chain = [(words.clone(), params.clone()) for _ in range(count)]
    multiply = aten._weight_int4pack_mm_for_cpu
    size = words.nbytes + params.nbytes
    return Case(Kernel.INT4PACK, size, count, lambda x: [multiply(x, w, group, p) for w, p in chain])


def torch_bf16(weight: GridWeight, count: int) -> Case:
    dense = weight.dequantize(torch.bfloat16)
    chain = [dense.clone() for _ in range(max(2, count // 4))]
    linear = torch.nn.functional.linear
    return Case(Kernel.DENSE, dense.nbytes, len(chain), lambda x: [linear(x, w) for w in chain])


# MatMulNBits' accuracy_level: 4 rounds activations to int8, 1 computes in float32.
LEVELS = {Kernel.ORT_INT8: 4, Kernel.ORT_FP32: 1}


def onnxruntime(weight: GridWeight, count: int, kernel: Kernel) -> Case:
    """MatMulNBits on float32 activations."""
    import onnxruntime as ort

    tensors = nibbles(weight)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = _chain_of_matmuls(weight, tensors, count, LEVELS[kernel])
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()

    def passes(x: Tensor) -> list:
        binding.bind_cpu_input("x", x.float().numpy())
        for i in range(count):
            binding.bind_output(f"y{i}")
        session.run_with_iobinding(binding)
        return binding.get_outputs()

    return Case(kernel, sum(tensor.nbytes for tensor in tensors.values()), count, passes)


def nibbles(weight: GridWeight) -> dict[str, Tensor]:
    """A 4-bit weight as MatMulNBits stores it: codes `b`, scales `s`, zeros `z`; the even one in the low half."""
    n, k = weight.codes.shape
    group = weight.group_size
    zeros = torch.nn.functional.pad(weight.zeros, (0, weight.zeros.shape[1] % 2))
    return {
        "b": (weight.codes[:, ::2] | weight.codes[:, 1::2] << 4).view(n, k // group, group // 2),
        "s": weight.scales.float().reshape(-1),
        "z": (zeros[:, ::2] | zeros[:, 1::2] << 4).reshape(-1),
    }


def _chain_of_matmuls(weight: GridWeight, tensors: dict[str, Tensor], count: int, level: int) -> bytes:
    """An ONNX model with one input `x` and `count` matmuls of it, `y0` on."""
    from onnx import TensorProto, helper, numpy_helper

    n, k = weight.codes.shape
    attributes = dict(K=k, N=n, bits=4, block_size=weight.group_size, accuracy_level=level)
    nodes, initializers = [], []
    for i in range(count):
        # equal matrices would be merged into one
        for name, tensor in {**tensors, "b": tensors["b"] ^ (17 * i % 256)}.items():
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
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
