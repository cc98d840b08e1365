"""Three decoders by their dimensions, and what all their matmuls together cost on an array. Needs no weights."""

from dataclasses import dataclass

from qlinear.backends.aie.counters import Counters, cost
from qlinear.backends.aie.devices import Device
from qlinear.backends.aie.latency import LatencyModel
from qlinear.backends.aie.tiling import tile_matmul

BITS = 4
GROUPINGS = ("none", "q/k/v", "q/k/v, gate/up")  # which matmuls run as one


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
SMOLLM2 = Model("SmolLM2-135M", 30, 576, 1536, 192, 49152, 64)
LLAMA_2 = Model("Llama-2-7B", 32, 4096, 11008, 4096, 32000, 128)
LLAMA_3 = Model("Llama-3-8B", 32, 4096, 14336, 1024, 128256, 128)
MODELS = (SMOLLM2, LLAMA_2, LLAMA_3)


def model_cost(model: Model, device: Device, grouping: str, rows: int, latency: LatencyModel) -> Counters:
    """Every matmul of the decoder layers for `rows` tokens at once; without the lm_head."""
    tilings = [tile_matmul(device, rows, k, n, BITS, model.group_size) for _, k, n in model.layer(grouping)]
    return sum((cost(tiling, latency) for tiling in tilings), Counters()) * model.layers
