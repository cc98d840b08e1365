"""Quantizing from Python: what it tells whoever watches, what it returns, and where the checkpoint goes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.models.tiny import Row, save_tiny
from checkpoints import journal
from qlinear.errors import AwqError, OptionError
from qlinear.progress import Note, Step, steps
from run_awq import Recipe, quantize
from tests.quantized import calibration_text, recipe, save_float, word_tokenizer
from tests.tiny import LAYERS, VOCAB


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save_float(tmp_path_factory.mktemp("models") / "Tiny Llama")


def kinds(events: list) -> tuple[list[Step], list[str]]:
    assert all(type(event) in (Step, Note) for event in events)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert not any("\n" in text or "--" in text for text in notes), "the command alone knows its options"
    return [event for event in events if isinstance(event, Step)], notes


def test_steps_go_from_none_to_all(source, tmp_path):
    events = []
    quantize(str(source), str(tmp_path / "q"), recipe(source), progress=events.append)
    told, notes = kinds(events)
    assert told == [Step("blocks", done, LAYERS) for done in range(LAYERS + 1)] and notes == []


def test_choices_made_for_the_user_are_told(source, tmp_path, monkeypatch):
    monkeypatch.setenv("AWQ_CACHE", str(tmp_path / "cache"))
    wanted = recipe(source, group_size=None, awq="auto", n_samples=100)
    events = []
    quantize(str(source), str(tmp_path / "q"), wanted, progress=events.append)
    text = f"calibration text {calibration_text(source).name} has 25 blocks of 16 tokens; all are used"
    size = "group size 64: the largest of 128, 64, 32 that divides every layer"
    assert kinds(events)[1] == [size, text]

    again = []
    quantize(str(source), str(tmp_path / "q"), wanted, overwrite=True, progress=again.append)
    kept = tmp_path / "cache" / "tiny-llama-w4-g64.pt"
    assert kinds(again)[1] == [size, f"loading AWQ scales from {kept}"], "nothing reads the text any more"


def stopping_after(blocks: int, events: list):
    """A watcher that has seen enough."""

    def watch(event) -> None:
        events.append(event)
        if event == Step("blocks", blocks, LAYERS):
            raise KeyboardInterrupt

    return watch


def test_a_run_that_its_watcher_stops_and_goes_on_with(source, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "WORTH", 0)
    output, events = tmp_path / "q", []
    with pytest.raises(KeyboardInterrupt):
        quantize(str(source), str(output), recipe(source), progress=stopping_after(1, events))
    assert kinds(events) == (
        [Step("blocks", 0, LAYERS), Step("blocks", 1, LAYERS)],
        ["stopped; 1 of 2 blocks are kept, and the same again with `resume` goes on from there (without it, it starts "
         "over)"],
    )  # fmt: skip
    assert not output.exists()

    events.clear()
    quantize(str(source), str(output), recipe(source), resume=True, progress=events.append)
    told, notes = kinds(events)
    assert notes == ["going on after 1 of 2 blocks"]
    assert told == [Step("blocks", 0, LAYERS - 1), Step("blocks", 1, LAYERS - 1)]

    whole = tmp_path / "whole"
    quantize(str(source), str(whole), recipe(source))
    first, second = (load_file(folder / "model.safetensors") for folder in (output, whole))
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_starting_over_is_told(source, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "WORTH", 0)
    output, events = str(tmp_path / "q"), []
    with pytest.raises(KeyboardInterrupt):
        quantize(str(source), output, recipe(source), progress=stopping_after(1, []))
    quantize(str(source), output, recipe(source), progress=events.append)
    (note,) = kinds(events)[1]
    assert note == "starting over; what an earlier run left for `resume` goes when the first block is done"


def test_what_comes_of_it(source, tmp_path):
    output = tmp_path / "q"
    wanted = recipe(source, awq="run", solver="gptq", w_bit=3, lm_head=True, scales=str(tmp_path / "s.pt"))
    found = quantize(str(source), str(output), wanted)
    assert (found.model, found.checkpoint, found.scales) == ("tiny-llama", str(output), str(tmp_path / "s.pt"))
    assert (found.w_bit, found.group_size, found.awq, found.solver) == (3, 32, "run", "gptq")
    assert [layer.name for layer in found.layers][-1] == "lm_head" and len(found.layers) == 7 * LAYERS + 1
    assert all(0 < layer.loss_solver < 1 for layer in found.layers)
    assert found.calibration["samples_drawn"] == 8 and found.calibration["seqlen"] == 16
    tensors = load_file(output / "model.safetensors")
    assert found.size.quantized_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert found.size.float_bytes == (source / "model.safetensors").stat().st_size - header(source)
    stored = json.loads((output / "awq_recipe.json").read_text())
    assert stored["options"] == {"model_name": str(source), **wanted.settled().to_json()}
    assert stored["size"]["quantized_bytes"] == found.size.quantized_bytes


def header(directory: Path) -> int:
    """Bytes before the first tensor of a safetensors file."""
    with (directory / "model.safetensors").open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_without_an_output_it_is_named_after_the_recipe(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = quantize(str(source), recipe=Recipe(awq="none", lm_head=True))
    assert found.checkpoint == "quantized_models/tiny-llama-w4-g64-rtn-lm_head"
    assert (tmp_path / found.checkpoint / "model.safetensors").is_file()


def test_a_type_without_a_row_is_solved_on_text(tmp_path):
    """Its blocks are found and run without one."""
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=VOCAB)
    directory = tmp_path / "m"
    config = AutoConfig.for_model("stablelm", num_key_value_heads=2, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    calibration_text(directory).write_text(" ".join(f"w{3 + 7 * i % (VOCAB - 3)}" for i in range(200)))
    found = quantize(str(directory), str(tmp_path / "q"), recipe(directory, solver="gptq"))
    assert len(found.layers) == 7 and all(0 < layer.loss_solver < 1 for layer in found.layers)
    assert all(layer.fed.tokens == 8 * 16 for layer in found.layers)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(seqlen=257, solver="gptq"), "`seqlen=257` is more than the model's context of 256 tokens"),
        (dict(calib_data="absent.txt", solver="gptq"), "`calib_data=absent.txt`: no such file"),
        (dict(awq="load", scales="absent.pt"), "no scales file absent.pt"),
        (dict(group_size=256), "group size 256 does not divide"),
    ],
)
def test_what_does_not_fit_the_model_is_told_and_nothing_is_written(source, tmp_path, changes, words):
    with pytest.raises(AwqError) as error:
        quantize(str(source), str(tmp_path / "out" / "q"), recipe(source, **changes))
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value) and "--" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_positions_that_begin_behind_the_padding_leave_a_shorter_context(tmp_path):
    """RoBERTa's rows up to that of the padding's id are no positions."""
    text = save_tiny(Row("roberta"), tmp_path / "m")
    config = AutoConfig.from_pretrained(tmp_path / "m")
    most = config.max_position_embeddings - config.pad_token_id - 1
    how = Recipe(group_size=32, awq="none", solver="gptq", calib_data=str(text), n_samples=1)
    with pytest.raises(OptionError, match=f"`seqlen={most + 1}` is more than the model's context of {most} tokens"):
        quantize(str(tmp_path / "m"), str(tmp_path / "q"), replace(how, seqlen=most + 1))
    quantize(str(tmp_path / "m"), str(tmp_path / "q"), replace(how, seqlen=most))


def test_steps_are_told_before_the_first_and_after_each():
    events = []
    seen = [(item, len(events)) for item in steps("abc", 3, "letters", events.append)]
    assert seen == [("a", 1), ("b", 2), ("c", 3)]
    assert events == [Step("letters", done, 3) for done in range(4)]
    assert list(steps([], 0, "letters", events.append)) == [] and events[4:] == [Step("letters", 0, 0)]
