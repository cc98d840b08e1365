"""Every mistake on the command line: one line that names the value, the limit and what to do; status 2; no trace."""

import pytest
import torch

from tests.awq_cli.conftest import CALIBRATION

IDLE = [
    ("quantize", ["--lm_head_group_size", "64"], "--lm_head_group_size means nothing without --lm_head"),
    ("quantize", ["--awq", "none", "--scales", "x.pt"], "--scales means nothing with --awq none"),
    (
        "quantize",
        ["--awq", "none", "--n_samples", "8"],
        "--n_samples means nothing with --awq none and --solver rtn or hqq",
    ),
    (
        "quantize",
        ["--awq", "none", "--solver", "hqq", "--seed", "1"],
        "--seed means nothing with --awq none and --solver rtn or hqq",
    ),
    ("quantize", ["--awq", "load", "--seed", "1"], "--seed means nothing with --awq load and --solver rtn"),
    ("quantize", ["--csv", "rows.csv"], "--csv means nothing for --task quantize"),
    ("quantize", ["--target", "cpu"], "--target means nothing for --task quantize"),
    ("quantize", ["--prompt", "hello"], "--prompt means nothing for --task quantize"),
    ("decode", ["--csv", "rows.csv"], "--csv means nothing for --task decode"),
    ("decode", ["--n_samples", "8"], "--n_samples means nothing for --task decode"),
    ("decode", ["--dataset", "x.txt"], "--dataset means nothing for --task decode"),
    ("decode", ["--bits_per_weight", "3.5", "--w_bit", "4"], "--w_bit means nothing with --bits_per_weight"),
    ("decode", ["--checkpoint", "x", "--w_bit", "4"], "--w_bit means nothing with --checkpoint"),
    ("decode", ["--checkpoint", "x", "--lm_head"], "--lm_head means nothing with --checkpoint"),
    ("decode", ["--precision", "bf16", "--checkpoint", "x"], "--checkpoint means nothing with --precision bf16"),
    ("decode", ["--precision", "bf16", "--w_bit", "3"], "--w_bit means nothing with --precision bf16"),
    ("benchmark", ["--window", "64"], "--window means nothing for --task benchmark"),
    ("benchmark_long", ["--chat"], "--chat means nothing for --task benchmark_long"),
    ("chat", ["--raw"], "--raw means nothing for --task chat"),
    ("chat", ["--prompt", "x"], "--prompt means nothing for --task chat"),
    ("decode", ["--context", "64"], "--context means nothing for --task decode"),
    ("benchmark", ["--stop", "x"], "--stop means nothing for --task benchmark"),
    ("decode", ["--system", "x"], "--system means nothing without --prompt or --chat"),
    ("decode", ["--system", "x", "--prompt", "y", "--raw"], "--system means nothing with --raw"),
    ("perplexity", ["--max_new_tokens", "3"], "--max_new_tokens means nothing for --task perplexity"),
    ("perplexity", ["--overwrite"], "--overwrite means nothing for --task perplexity"),
]


@pytest.mark.parametrize(("task", "options", "message"), IDLE)
def test_an_option_that_means_nothing_is_refused(run, task, options, message):
    assert run("--task", task, *options).error == f"{message}; leave it out"
    assert run.left() == []


MALFORMED = [
    ([], "Missing option '--task'. Choose from: quantize, decode, chat, serve, benchmark, "
     "benchmark_long, perplexity, evaluate, export"),
    (["--task", "train"], "Invalid value for '--task': 'train' is not one of 'quantize', 'decode', 'chat', "
     "'serve', 'benchmark', 'benchmark_long', 'perplexity', 'evaluate', 'export'."),
    (["--task", "quantize", "--w_bit", "5"], "Invalid value for '--w_bit': '5' is not one of '3', '4'."),
    (["--task", "quantize", "--bits_per_weight", "9"], "--bits_per_weight 9.0 has to be a number from 3.074 to 4.625"),
    (["--task", "quantize", "--bits_per_weight", "3.5", "--format", "awq"],
     "--format awq has one number of bits; leave --bits_per_weight out, or --format"),
    (["--task", "quantize", "--group_size", "96"],
     "Invalid value for '--group_size': '96' is not one of '32', '64', '128', '256'."),
    (["--task", "quantize", "--n_samples", "0"], "Invalid value for '--n_samples': 0 is not in the range x>=1."),
    (["--task", "quantize", "--seed", "-1"], "Invalid value for '--seed': -1 is not in the range 0<=x<=4294967295."),
    (["--task", "decode", "--json", "no/such/result.json"],
     "--json no/such/result.json cannot be written: there is no directory {}/no/such"),
    (["--task", "decode", "--json", "."], "--json . cannot be written: that is a directory"),
    (["--task", "decode", "--json", "x" * 300], f"--json {'x' * 300} cannot be written: File name too long"),
    (["--task", "decode", "--checkpoint", "x" * 300 + ".gguf"], f"{'x' * 60}...: File name too long"),
    (["--task", "benchmark", "--csv", "/"], "--csv / cannot be written: that is a directory"),
    (["--task", "decode", "--model_name", "./no/model"], "no checkpoint quantized_models/model-w4-g*-awq-gptq; "
     "quantized_models/ has none; make it with: run_awq.py --task quantize --model_name ./no/model --w_bit 4"),
    (["--task", "decode", "--checkpoint", "nowhere"],
     "nowhere is not a checkpoint: there is no such directory; quantize a model to make one"),
    (["--task", "decode", "--checkpoint", "org/model-awq"], "org/model-awq is not a checkpoint: there is no such "
     "directory; one on the hub is fetched by `hf download org/model-awq`, which says where to"),
    (["--task", "decode", "--checkpoint", "https://hf.co/org/model-awq/tree/main"],
     "https:/hf.co/org/model-awq/tree/main is not a checkpoint: there is no such directory; one on the hub is fetched "
     "by `hf download org/model-awq`, which says where to"),
    (["--task", "decode", "--checkpoint", __file__],
     f"{__file__} is not a checkpoint: a file that is no .gguf; quantize a model to make one"),
    (["--task", "export", "--format", "gguf_f17"], "Invalid value for '--format': 'gguf_f17' is not one of "
     "'compressed-tensors', 'awq', 'gptq', 'gguf', 'gguf-f16', 'gguf-bf16'."),
    (["--task", "decode", "--precision", "bf16", "--target", "aie"],
     "--precision bf16 runs the float model, which --target aie cannot; use cpu"),
    (["--task", "decode", "--precision", "bf16", "--model_name", "./no/model"],
     "no model './no/model': it is not one of smollm2-135m-instruct, nor a directory or .gguf file here"),
    (["--task", "decode", "--precision", "bf16", "--model_name", "https://huggingface.co/org/model"],
     "no model 'https://huggingface.co/org/model': it is not one of smollm2-135m-instruct, nor a directory or .gguf "
     "file here; for one on the hub give its name alone, org/model"),
    (["--task", "quantize", "--model_name", "lost.gguf"],
     "no model 'lost.gguf': it is not one of smollm2-135m-instruct, nor a directory or .gguf file here"),
    (["--task", "perplexity", "--dataset", "lost.txt"],
     "--dataset lost.txt: no such file, and neither raw nor non-raw"),
    (["--task", "perplexity", "--dataset", "."], "--dataset . cannot be read: Is a directory"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MALFORMED)
def test_a_wrong_value_is_named(run, arguments, message):
    assert run(*arguments).error == message.format(run.folder.resolve())
    assert run.left() == []


EMPTY = [
    ("decode", ("--model_name", "--checkpoint", "--draft", "--json")),
    ("quantize", ("--model_name", "--scales", "--calib_data", "--output", "--json")),
    ("benchmark", ("--checkpoint", "--dataset", "--csv")),
    ("evaluate", ("--checkpoint", "--dataset", "--eval_data", "--float_model", "--tasks")),
    ("export", ("--checkpoint", "--output", "--push")),
    ("serve", ("--checkpoint", "--host", "--api_key")),
]


@pytest.mark.parametrize(("task", "option"), [(task, option) for task, options in EMPTY for option in options])
def test_an_empty_value_is_not_the_default(run, task, option):
    """A shell's variable that nobody has set: `--checkpoint "$MINE"` would run another one."""
    assert run("--task", task, option, "").error == f"{option} is empty; give it a value, or leave it out"
    assert run.left() == []


def test_a_cuda_target_needs_a_gpu(run, rounded, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = "--target cuda: torch finds no CUDA device on this machine; use --target cpu"
    assert run("--task", "decode", "--checkpoint", rounded, "--target", "cuda").error == error


def test_a_missing_checkpoint_lists_those_that_exist(run, model):
    run.result("--task", "quantize", "--model_name", model, "--awq", "none")
    (run.folder / "quantized_models" / ".other.partial").mkdir()
    (run.folder / "quantized_models" / ".other.partial" / "config.json").write_text("{}")  # of a run that was killed
    spaced = model.with_name("its name")
    spaced.symlink_to(model)
    options = ("--w_bit", "3", "--group_size", "32", "--symmetric", "--awq", "none", "--lm_head")
    assert run("--task", "decode", "--model_name", spaced, *options).error == (
        "no checkpoint quantized_models/tiny-w3-g32-symmetric-rtn-lm_head; quantized_models/ has tiny-w4-g64-rtn; make "
        f"it with: run_awq.py --task quantize --model_name '{spaced}' --w_bit 3 --group_size 32 --symmetric --awq none "
        "--lm_head"
    )


def test_a_group_size_that_does_not_divide(run, model, make_model, tmp_path):
    quantize = ("--task", "quantize", "--awq", "none", "--model_name")
    assert run(*quantize, model, "--group_size", "128").error == (
        "group size 128 does not divide model.layers.0.self_attn.q_proj (in_features 64); use --group_size 32 or 64"
    )
    assert run(*quantize, model, "--lm_head", "--lm_head_group_size", "256").error.startswith(
        "group size 256 does not divide lm_head (in_features 64)"
    )
    odd = make_model(tmp_path / "odd", hidden_size=48, intermediate_size=72)
    assert run(*quantize, odd).error == (
        "there is no linear layer whose inputs a group size (32, 64, 128, 256) divides, so nothing to quantize"
    )
    assert run.left() == []


def test_one_odd_width_stays_float_and_is_told(run, make_model, tmp_path):
    odd = make_model(tmp_path / "odd", intermediate_size=72)
    made = run("--task", "quantize", "--awq", "none", "--model_name", odd)
    kept = "model.layers.*.mlp.down_proj (no group size divides its 72 inputs)"
    assert made.code == 0 and f"note: 18% of the decoder's weights stay in bfloat16: {kept}" in made.notes


def test_an_existing_directory_is_not_replaced_unasked(run, model):
    quantize = ("--task", "quantize", "--awq", "none", "--model_name", model, "--output")
    run.result(*quantize, "made")
    before = (run.folder / "made" / "model.safetensors").stat().st_mtime_ns
    exists = "made exists already; give --overwrite to replace it, or another --output"
    assert run(*quantize, "made").error == exists
    assert (run.folder / "made" / "model.safetensors").stat().st_mtime_ns == before
    assert run(*quantize, "made", "--overwrite").code == 0
    assert (run.folder / "made" / "model.safetensors").stat().st_mtime_ns > before

    (run.folder / "photos").mkdir()
    (run.folder / "photos" / "cat.png").touch()
    for taken in ("photos", "result.json"):
        error = run(*quantize, taken, "--overwrite").error
        assert error == f"{taken} is there already and no checkpoint made by this program; give another --output"
    assert (run.folder / "photos" / "cat.png").exists()
    assert run(*quantize, model, "--overwrite").error.startswith(f"{model} is there already and no checkpoint made ")
    (run.folder / "made" / "notes.txt").write_text("mine")
    assert run(*quantize, "made", "--overwrite").error == (
        "made holds notes.txt, which this program did not put there; move it away, or give another --output"
    )
    assert (run.folder / "made" / "notes.txt").read_text() == "mine"
    assert run(*quantize, "result.json/below").error == "cannot write to result.json: Not a directory"


def test_calibration_text(run, model, tmp_path):
    quantize = ("--task", "quantize", "--model_name", model, "--output", "new/made", *CALIBRATION)
    text = tmp_path / "text.txt"
    text.write_text("")
    too_short = "tokens, less than one block of --seqlen 32; use a longer text or a smaller --seqlen"
    assert run(*quantize, "--calib_data", text).error == f"calibration text text.txt has 1 {too_short}"
    text.write_text("a word " * 10)
    assert run(*quantize, "--calib_data", text).error == f"calibration text text.txt has 21 {too_short}"
    text.write_bytes(b"caf\xe9")
    assert f"--calib_data {text} is not UTF-8 text" in run(*quantize, "--calib_data", text).error
    missing = "--calib_data lost.txt: no such file, and not one of builtin, pileval, wikitext2, c4, self"
    assert run(*quantize, "--calib_data", "lost.txt").error == missing
    error = run(*quantize, "--seqlen", "601").error
    assert error == "--seqlen 601 is more than the model's context of 600 tokens"
    assert run.left() == []


def test_scales_that_could_not_be_saved_are_not_searched(run, model, text_file):
    (run.folder / "cache").touch()  # where the folder should be
    quantize = ("--task", "quantize", "--model_name", model, "--calib_data", text_file, *CALIBRATION)
    path = run.folder / "cache" / "tiny-w4-g64.pt"
    assert run(*quantize).error == (
        f"scales cannot be saved in {path}: {run.folder}/cache is no directory; give another --scales"
    )
    assert run.left() == ["cache"]


def test_text_to_score(run, rounded, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a word " * 50)
    score = ("--task", "perplexity", "--checkpoint", rounded, "--dataset", text)
    assert run(*score, "--window", "601").error == (
        "windows of --window need 601 tokens, more than the model's context of 600; ask for fewer"
    )
    assert run(*score, "--window", "102").error == (
        "text.txt has 101 tokens, less than one --window of 102; use a smaller one"
    )
    assert run(*score, "--window", "30", "--n_windows", "4").error == (
        "--n_windows 4: text.txt has only 3 windows of 30 tokens; use fewer"
    )
    text.write_bytes(b"caf\xe9")
    assert run(*score).error == f"--dataset {text} is not UTF-8 text: unexpected end of data at byte 3"


def test_prompts(run, rounded, text_file):
    decode = ("--task", "decode", "--checkpoint", rounded)
    assert run(*decode, "--prompt", " ").error == "--prompt ' ' is empty; give some text"
    assert run(*decode, "--prompt", "x", "--chat").error == (
        "--chat: this model's tokenizer has no chat template; use --raw"
    )
    assert run(*decode, "--prompt", "a word " * 300).error == (
        "a --prompt of 601 and --max_new_tokens 1 need 602 tokens, more than the model's context of 600; ask for fewer"
    )
    assert run(*decode, "--prompt", "a word", "--max_new_tokens", "598").error == (
        "a --prompt of 3 and --max_new_tokens 598 need 601 tokens, more than the model's context of 600; ask for fewer"
    )
    assert run.left() == []


def test_no_benchmark_length_fits(run, make_model, tmp_path):
    short = make_model(tmp_path / "short", max_position_embeddings=14)
    float_model = ("--model_name", short, "--precision", "bf16")
    error = run("--task", "benchmark_long", *float_model).error
    assert error.startswith("no prompt length of --task benchmark_long fits: the text has ")
    assert error.endswith(" tokens, the model's context room for 3")


@pytest.fixture
def no_network(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", unreachable)


def test_the_hub_cannot_be_reached(run, model, rounded, no_network):
    unreachable = "wikitext-2 (--dataset raw) could not be fetched (ConnectionError); without a network, give a text "
    unreachable += "file: --dataset FILE"
    assert run("--task", "perplexity", "--checkpoint", rounded).error == unreachable
    calibrate = run("--task", "quantize", "--model_name", model, "--calib_data", "c4", *CALIBRATION)
    assert calibrate.error == (
        "--calib_data c4 could not be fetched (ConnectionError); without a network, use builtin or a text file"
    )
    assert run.left() == []
    fallback = run("--task", "benchmark", "--checkpoint", rounded, "--dataset", "raw", "--max_new_tokens", "1")
    assert fallback.code == 0 and fallback.notes == [f"note: {unreachable}; using the built-in text"]
