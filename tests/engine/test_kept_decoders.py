"""What a model was asked before changes nothing about what it is asked now."""

import pytest

from engine.model import About, Model
from engine.whole import ModuleRunner
from qlinear.backends.cpu import native
from qlinear.backends.reference import ReferenceBackend
from qlinear.progress import silent
from tests.quantized import word_tokenizer
from tests.tiny import tiny_model

LONG_ROPE = dict(
    original_max_position_embeddings=64,
    rope_parameters=dict(
        rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=64, short_factor=[1.0] * 8,
        long_factor=[2.0] * 8, factor=4.0,
    ),
)  # fmt: skip
PROMPTS = [f"w{number} w{number + 7} w{number + 30}" for number in range(3, 40)]
TEXT = " ".join(f"w{3 + (number * number * 7 + number // 3) % 110}" for number in range(640))


def backend():
    if not native.is_built():
        return ReferenceBackend("cpu/torch")
    from qlinear.backends.cpu.backend import CpuBackend

    return CpuBackend()


@pytest.mark.parametrize(
    "model_type, overrides, flash", [("gpt_neox", {}, True), ("llama", {}, False), ("llama", {}, True),
                                     ("phi3", LONG_ROPE, True)]
)  # fmt: skip
def test_a_longer_answer_before_changes_none(model_type, overrides, flash):
    """On modules, and where longer texts are turned by other angles."""
    module = tiny_model(model_type, **overrides)
    about = About(name="tiny", code="cpu", precision="bf16", model_bytes=1)
    model = Model(about, ModuleRunner(module, backend(), flash, quantized=False), word_tokenizer(), silent)

    def found():
        drawn = [model.generate([prompt], max_new_tokens=20, temperature=0.7, seed=1)[0] for prompt in PROMPTS]
        return drawn, model.perplexity(TEXT, window=32)

    before = found()
    model.generate(["w5"], max_new_tokens=200)
    assert found() == before
