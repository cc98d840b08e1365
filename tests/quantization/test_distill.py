"""Scales fitted to the float model's predictions: what they come to, reckoned again from the checkpoint's files."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from checkpoints import journal
from checkpoints.formats.compressed_tensors import grid_weight
from qlinear.errors import CalibrationError, OptionError
from qlinear.progress import Note, Step
from quantization import distill
from quantization.student import Student
from quantization.texts.samples import read_text
from run_awq import Recipe, quantize
from tests.awq_cli.resume.test_same_bytes import contents
from tests.quantized import calibration_text, recipe, save_float, word_tokenizer
from tests.tiny import VOCAB

STEPS, TOKENS = 8, 128


@pytest.fixture(autouse=True)
def quick_and_exact(monkeypatch):
    """Tiny models take larger steps, are looked at more often, and are multiplied in float32."""
    monkeypatch.setattr(distill, "RATE", 0.006)
    monkeypatch.setattr(distill, "CHECK_STEPS", 2)
    monkeypatch.setattr(distill, "TOKENS", TOKENS)
    monkeypatch.setattr(distill, "product_dtype", lambda: torch.float32)


@pytest.fixture
def saved(tmp_path):
    """A function that saves a tiny model, with text for all steps beside it."""

    def save(model_type: str = "llama"):
        model = save_float(tmp_path / "m", model_type)
        words = torch.randint(3, VOCAB, (1600,), generator=torch.Generator().manual_seed(5)).tolist()
        calibration_text(model).write_text(" ".join(f"w{word}" for word in words))
        return model

    return save


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A function that tells what a recipe's distillation would be of, and stops there."""

    def open_one(asked: Recipe) -> distill.Lesson:
        found = []

        def stop(*given):
            found.append(distill.open_lesson(*given))
            raise KeyboardInterrupt

        monkeypatch.setattr("quantization.quantize.open_lesson", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(str(tmp_path / "m"), str(tmp_path / "q"), asked)
        return found[0]

    return open_one


def made(model, output, **changes) -> tuple[dict, Recipe, object]:
    asked = recipe(model, w_bit=3, **changes)
    result = quantize(str(model), str(output), asked)
    return load_file(output / "model.safetensors"), asked, result


def dequantized(tensors: dict, linear: str, bits: int) -> torch.Tensor:
    parts = {name.removeprefix(f"{linear}."): tensors[name] for name in tensors if name.startswith(f"{linear}.")}
    return grid_weight(parts, bits).dequantize()


def drawn(asked: Recipe) -> torch.Tensor:
    """All blocks of the text, in the order in which they are drawn."""
    words = torch.tensor(word_tokenizer()(read_text(asked.calib_data).text)["input_ids"])
    blocks = words[: len(words) // asked.seqlen * asked.seqlen].view(-1, asked.seqlen)
    return blocks[torch.randperm(len(blocks), generator=torch.Generator().manual_seed(asked.seed))]


@torch.no_grad()
def divergence(model, tensors: dict, asked: Recipe) -> float:
    """Of the checkpoint's predictions from the float model's on the samples held back, in float64."""
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64, experts_implementation="eager")
        for _ in range(2)
    )
    state = student.state_dict()
    for name in state:
        base, _, last = name.rpartition(".")
        if base.endswith(".experts"):  # one tensor of all experts' there
            experts = range(len(state[name]))
            parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
            state[name].copy_(torch.stack([
                torch.cat([dequantized(tensors, f"{base}.{expert}.{part}", asked.w_bit) for part in parts])
                for expert in experts
            ]))  # fmt: skip
        elif f"{base}.weight_packed" in tensors and last == "weight":
            state[name].copy_(dequantized(tensors, base, asked.w_bit))
        elif name in tensors:
            state[name].copy_(tensors[name])
    learned = STEPS * TOKENS // asked.seqlen
    held = drawn(asked)[learned : learned + 8]
    target, found = (each(held).logits.log_softmax(-1) for each in (teacher, student))
    return float(kl_div(found, target, reduction="sum", log_target=True)) / held.numel()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"awq": "run", "solver": "gptq"}),
        ("llama", {"lm_head": True}),
        ("starcoder2", {"symmetric": True}),
        ("gemma2", {}),
        ("opt", {}),
        ("qwen3_moe", {}),
    ],
)
def test_scales_alone_move_and_predictions_come_nearer(tmp_path, saved, model_type, changes):
    model = saved(model_type)
    plain, asked, _ = made(model, tmp_path / "plain", **changes)
    tensors, _, result = made(model, tmp_path / "distilled", distill=STEPS, **changes)
    moved = {name for name in tensors if not torch.equal(tensors[name], plain[name])}
    quantized = {name.removesuffix("weight_packed") for name in tensors if name.endswith(".weight_packed")}
    assert plain.keys() == tensors.keys() and moved <= {f"{base}weight_scale" for base in quantized}
    assert len(moved) >= 0.9 * len(quantized)
    assert all(tensors[name].dtype == plain[name].dtype for name in moved)

    found = result.distilled
    assert found.steps == STEPS and 0 < found.kept <= STEPS and found.after < found.before
    assert found.before == pytest.approx(divergence(model, plain, asked), rel=2e-3, abs=1e-6)
    assert found.after == pytest.approx(divergence(model, tensors, asked), rel=2e-3, abs=1e-6)


def test_what_comes_out_worse_is_not_kept(tmp_path, saved, monkeypatch):
    monkeypatch.setattr(distill, "RATE", 3.0)
    model = saved()
    plain, _, _ = made(model, tmp_path / "plain")
    tensors, _, result = made(model, tmp_path / "distilled", distill=STEPS)
    assert result.distilled.kept == 0 and result.distilled.after == result.distilled.before
    assert all(torch.equal(tensors[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("n_samples", "steps", "learned", "held"),
    [
        (8, 8, slice(64), slice(64, 72)),
        (40, 2, slice(16), slice(42, 48)),  # one in eight, after all that is calibrated on
        (200, 2, slice(16), slice(92, 100)),  # of 100 blocks, which are all calibrated on
        (40, 50, slice(92), slice(92, 100)),
    ],
)
def test_what_is_held_back_is_neither_learned_from_nor_calibrated_on(saved, opened, n_samples, steps, learned, held):
    asked = recipe(saved(), w_bit=3, awq="run", n_samples=n_samples, distill=steps)
    lesson = opened(asked)
    first, last = lesson.split()
    assert torch.equal(lesson.tokens[first], drawn(asked)[learned])
    assert torch.equal(lesson.tokens[last], drawn(asked)[held])


def test_where_nothing_was_calibrated_on_no_text_is_passed_over(saved, opened):
    asked = recipe(saved(), w_bit=3, n_samples=40, distill=2)
    lesson = opened(asked)
    assert torch.equal(lesson.tokens, torch.cat([drawn(asked)[:16], drawn(asked)[21:24]])) and lesson.held == 3


def test_of_a_few_samples_all_are_for_both(saved, opened):
    asked = recipe(saved(), w_bit=3, seqlen=225, distill=9)
    lesson = opened(asked)
    assert torch.equal(lesson.tokens, drawn(asked)) and len(lesson.tokens) == 7
    assert lesson.split() == (list(range(7)), list(range(7)))


@pytest.mark.parametrize("steps", [0, 3, STEPS])
def test_a_run_that_is_stopped_on_the_way_comes_to_the_same_bytes(tmp_path, saved, monkeypatch, steps):
    monkeypatch.setattr(journal, "WORTH", 0)
    model = saved()
    asked = recipe(model, w_bit=3, distill=STEPS, lm_head=True)
    quantize(str(model), str(tmp_path / "whole"), asked)

    def stop(event) -> None:
        if event == Step("steps", steps, STEPS):
            raise KeyboardInterrupt

    def stop_again(event) -> None:
        if isinstance(event, Step) and event.what == "steps":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(str(model), str(tmp_path / "resumed"), asked, progress=stop)
    if steps < STEPS:
        with pytest.raises(KeyboardInterrupt):
            quantize(str(model), str(tmp_path / "resumed"), asked, resume=True, progress=stop_again)
    told = []
    quantize(str(model), str(tmp_path / "resumed"), asked, resume=True, progress=told.append)
    assert Note("going on after 2 of 2 blocks") in told
    left = STEPS - max(steps, 0)
    assert Step("steps", 0, left) in told or left == 0
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_a_model_without_room_is_refused_before_the_first_block(tmp_path, saved, monkeypatch):
    model = saved()
    monkeypatch.setattr(distill, "available_bytes", lambda: 100_000)
    said = r"^`distill=5` holds the quantized model in memory, about 0\.\d GB .*; leave it out, or .* `seqlen`$"
    with pytest.raises(OptionError, match=said):
        quantize(str(model), str(tmp_path / "q"), recipe(model, distill=5))
    quantize(str(model), str(tmp_path / "q"), recipe(model))


def test_predictions_that_are_no_numbers_teach_nothing(tmp_path, saved, monkeypatch):
    monkeypatch.setattr(Student, "divergence", lambda *_: float("nan"))
    with pytest.raises(
        CalibrationError, match="^the model's predictions on the calibration text are not finite; leave"
    ):
        quantize(str(saved()), str(tmp_path / "q"), recipe(tmp_path / "m", distill=STEPS))
    assert not (tmp_path / "q").exists()
