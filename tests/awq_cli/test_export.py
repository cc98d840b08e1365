"""--task export, and --format beside quantizing: what is shown, written and refused."""

import json
import shutil

from safetensors.torch import load_file, save_file

from checkpoints.formats.names import FORMATS, GGUF_FLOATS
from checkpoints.formats.writers import WRITERS


def test_every_format_has_its_writer():
    assert (*WRITERS, *GGUF_FLOATS) == FORMATS


def test_a_checkpoint_is_exported_and_runs(run, rounded):
    outcome = run("--task", "export", "--checkpoint", rounded, "--format", "awq", "--output", "awq")
    assert outcome.code == 0 and "4 bits in groups of 64 as awq" in outcome.out and "saved in awq" in outcome.out
    prompt = ("--task", "decode", "--prompt", "the value of", "--checkpoint")
    texts = [run.result(*prompt, folder)["responses"][0] for folder in (rounded, "awq")]
    assert texts[0]["response"] == texts[1]["response"]


def test_a_checkpoint_that_one_is_in(run, rounded):
    shutil.copytree(rounded, run.folder / "here")
    inside = type(run)(run.folder / "here")
    outcome = inside("--task", "export", "--checkpoint", ".", "--format", "awq")
    assert outcome.code == 0 and (run.folder / "here-awq" / "config.json").is_file()
    assert not (run.folder / "here" / "here-awq").exists()


def test_beside_quantizing(run, model):
    made = run.result(
        "--task", "quantize", "--model_name", model, "--awq", "none", "--output", "made", "--format", "gptq"
    )
    assert made["exported"]["format"] == "gptq" and made["exported"]["checkpoint"] == "made-gptq"
    section = json.loads((run.folder / "made-gptq" / "config.json").read_text())["quantization_config"]
    assert section["quant_method"] == "gptq"
    again = ("--task", "export", "--checkpoint", "made-gptq", "--format", "compressed-tensors")
    assert run.result(*again)["checkpoint"] == "made-gptq-compressed-tensors"
    assert "exists already; give --overwrite" in run(*again).error


def test_a_format_that_the_model_cannot_be_written_in(run, model):
    """Told before what takes hours."""
    quantize = ("--task", "quantize", "--model_name", model, "--awq", "none", "--output", "made")
    assert run(*quantize, "--format", "gguf").error == "the tokenizer is of kind WordLevel; GGUF is written for BPE"
    assert run.left() == []
    (run.folder / "made-gptq").mkdir()
    assert run(*quantize, "--format", "gptq").error.startswith("made-gptq is there already and no checkpoint")
    assert run.left() == ["made-gptq"]


def test_a_format_that_the_checkpoint_cannot_be_written_in(run, make_model):
    """What took hours is there all the same, and is named."""
    model = make_model(run.folder / "large")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = 2.0**17
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    quantize = ("--task", "quantize", "--model_name", model, "--awq", "none", "--output", "made")
    outcome = run(*quantize, "--format", "gptq")
    said = "made is complete, and not written as gptq: model.norm.weight holds 1.31e+05, more than "
    assert outcome.code == 2 and outcome.error.startswith(said)
    assert (run.folder / "made" / "config.json").is_file() and not (run.folder / "made-gptq").exists()


def test_what_cannot_be_exported(run, model, rounded):
    export = ("--task", "export", "--checkpoint", rounded)
    assert run(*export).error == "--format is missing: name the format to export to"
    assert "--push nobody is no name of a repository" in run(*export, "--format", "awq", "--push", "nobody").error
    assert "upload a GGUF file with: hf upload" in run(*export, "--format", "gguf", "--push", "org/name").error
    assert "--format means nothing for --task decode" in run("--task", "decode", "--format", "awq").error
    three = ("--task", "quantize", "--model_name", model, "--w_bit", "3", "--format", "awq", "--output", "never")
    assert run(*three).error == ("--format awq has 4 bits only; --format gptq and --format compressed-tensors have 3")
    assert run.left() == []
