"""Run by an interpreter with optimum-intel: CHECKPOINT DIRECTORY. A random model of its shape, of 4 bits."""

import sys
import tempfile
from pathlib import Path

from openvino import Model
from openvino import opset13 as operations
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

from benchmarks.cpu.random_model import write_random

GROUP_SIZES = 128, 64, 32  # the largest that goes


def main(checkpoint: Path, directory: Path) -> None:
    """Head and embedding are of 8 bits, as they are where nothing else is asked for."""
    with tempfile.TemporaryDirectory() as made:
        config = write_random(checkpoint, Path(made))
        sizes = config.hidden_size, config.intermediate_size
        group_size = next(size for size in GROUP_SIZES if all(k % size == 0 for k in sizes))
        how = OVWeightQuantizationConfig(bits=4, sym=False, group_size=group_size, ratio=1.0)
        found = OVModelForCausalLM.from_pretrained(made, export=True, compile=False, quantization_config=how)
    give_last_row(found.model)
    found.save_pretrained(directory)


def give_last_row(model: Model) -> None:
    """Have the head read the last token alone, as OpenVINO's own pipeline for texts does."""
    (result,) = (one for one in model.get_results() if "logits" in one.get_output_tensor(0).names)
    node = result.input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    last = operations.slice(node.input_value(0), [-1], [-2], [-1], [1])
    node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
