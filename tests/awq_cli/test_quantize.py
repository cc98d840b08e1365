"""Quantizing from the command line: what is made, told and found again."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from awq_cli.idle import IDLE
from quantization.methods import METHODS
from tests.awq_cli.conftest import CALIBRATION

FIELDS = {
    "task",
    "model",
    "w_bit",
    "group_size",
    "symmetric",
    "lm_head",
    "awq",
    "solver",
    "seconds",
    "size",
    "peak_rss_bytes",
}
FIELDS |= {"checkpoint", "layers", "blocks"}
LINEARS_A_BLOCK = 7
SYMMETRIC = ("--symmetric",)


def quantize(model, *more) -> tuple:
    return ("--task", "quantize", "--model_name", model, *more)


def weights(run, name: str) -> bytes:
    return (run.folder / "quantized_models" / name / "model.safetensors").read_bytes()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("flash", [False, True])
def test_the_eight_commands_of_the_original(run, model, text_file, bits, head, flash):
    """Quantize, then every task on what was made, found by the same options."""
    chosen = ("--model_name", model, "--w_bit", bits, *["--lm_head"] * head, *["--flash_attention"] * flash)
    made = run.result("--task", "quantize", *chosen, "--calib_data", text_file, *CALIBRATION)
    assert FIELDS <= made.keys()
    assert (made["task"], made["model"], made["w_bit"], made["group_size"]) == ("quantize", "tiny", bits, 64)
    assert (made["lm_head"], made["awq"], made["solver"]) == (head, "run", "gptq")
    assert made["seconds"].keys() == {"load", "search", "total", "forward"}
    assert 0 < made["seconds"]["forward"] < made["seconds"]["search"]
    assert 0 < made["seconds"]["load"] + made["seconds"]["search"] <= made["seconds"]["total"]
    name = f"tiny-w{bits}-g64-awq-gptq" + "-lm_head" * head + "-flash_attention" * flash
    assert made["checkpoint"] == f"quantized_models/{name}"

    assert len(made["layers"]) == 2 * LINEARS_A_BLOCK + head
    for layer in made["layers"]:
        assert layer.keys() == {"name", "group_size", "loss_rtn", "loss_awq", "loss_solver", "ratio", "fed", "w_bit"}
        if layer["name"] == "lm_head":
            assert layer["group_size"] == 64 and (layer["loss_rtn"], layer["loss_awq"], layer["ratio"]) == (None,) * 3
        else:
            assert layer["group_size"] == 64 and 0 < layer["loss_rtn"] < 0.2 and 0 < layer["loss_awq"] < 0.2
        assert 0 < layer["loss_solver"] < 0.2
    assert_sizes(made, run.folder / made["checkpoint"], bits, head)

    decoded = run.result("--task", "decode", *chosen, "--prompt", "the value of this", "--max_new_tokens", 3)
    assert (decoded["checkpoint"], decoded["flash_attention"]) == (made["checkpoint"], True)
    assert 1 <= decoded["responses"][0]["new_tokens"] <= 3
    timed = run.result("--task", "benchmark", *chosen, "--max_new_tokens", 2)
    assert [row["prompt_tokens"] for row in timed["rows"]] == [4, 8, 16, 32, 64, 128, 256]
    scored = run.result("--task", "perplexity", *chosen, "--dataset", text_file, "--window", 64, "--n_windows", 2)
    assert scored["tokens"] == 2 * 63 and scored["perplexity"] > 1


@pytest.mark.parametrize("awq", ["none", "run", "load"])
def test_solvers(run, model, text_file, awq):
    """Each makes a checkpoint of its own that is found and decoded; the more it looks at, the less it errs."""
    calibration = ("--calib_data", text_file, "--n_samples", "16", "--seqlen", "64")
    if awq == "load":
        run.result(*quantize(model, *calibration))
    losses = {}
    for solver in ("rtn", "hqq", "gptq"):
        chosen = ("--awq", awq, "--solver", solver, "--lm_head")
        text = calibration if METHODS[solver].reads_text(awq != "none") or awq == "run" else ()
        made = run.result(*quantize(model, *chosen, *text, "--overwrite"))
        method = solver if awq == "none" else "awq" if solver == "rtn" else f"awq-{solver}"
        assert made["checkpoint"] == f"quantized_models/tiny-w4-g64-{method}-lm_head" and made["solver"] == solver
        asked = ("--awq", awq if awq == "none" else "auto", "--solver", solver, "--lm_head")
        decoded = run.result("--task", "decode", "--model_name", model, *asked, "--prompt", "the value of this")
        assert decoded["checkpoint"] == made["checkpoint"]
        losses[solver] = [layer["loss_solver"] for layer in made["layers"]]
    reading = [solver for solver in losses if METHODS[solver].reads_text(awq != "none")]
    assert reading == (["gptq"] if awq == "none" else ["hqq", "gptq"])
    for solver, found in losses.items():
        assert [loss is not None for loss in found] == [solver in reading] * (2 * LINEARS_A_BLOCK + 1)
    if awq != "none":
        assert all(ours < 0.9 * other for ours, other in zip(losses["gptq"], losses["hqq"], strict=True))


def test_learned_codes_end_to_end(run, model, text_file):
    """What is told of the blocks is in the recipe too, and the checkpoint is one like any other."""
    chosen = ("--w_bit", "3", "--solver", "learned", "--lm_head")
    made = run(*quantize(model, *chosen, "--calib_data", text_file, "--n_samples", "24", "--seqlen", "256", "--no_bos"))
    assert made.code == 0 and "error of a block's output" in made.out
    folder = run.folder / "quantized_models" / "tiny-w3-g64-awq-learned-lm_head"
    recipe = json.loads((folder / "awq_recipe.json").read_text())
    assert recipe["calibration"]["bos"] is False and recipe["options"]["bos"] is False
    assert list(recipe["blocks"]) == ["model.layers.0", "model.layers.1"]
    assert all(0 < errors["after"] <= errors["before"] for errors in recipe["blocks"].values())
    assert recipe["blocks"]["model.layers.1"]["after"] < 0.98 * recipe["blocks"]["model.layers.1"]["before"]
    assert all(0 < layer["loss_solver"] < 0.5 for layer in recipe["layers"])
    decoded = run.result("--task", "decode", "--model_name", model, *chosen, "--prompt", "the value of this")
    assert decoded["checkpoint"] == f"quantized_models/{folder.name}"


def test_a_solver_makes_the_same_of_scales_searched_and_loaded(run, model, text_file):
    """To the bit: statistics of scaled inputs are reckoned from those before in either case."""
    for solver in ("hqq", "gptq"):
        chosen = ("--solver", solver, "--lm_head", "--calib_data", text_file, *CALIBRATION, "--overwrite")
        made = [run.result(*quantize(model, "--awq", awq, *chosen, "--output", awq)) for awq in ("run", "load")]
        searched, loaded = ([layer["loss_solver"] for layer in each["layers"]] for each in made)
        assert loaded == searched
        searched, loaded = (load_file(run.folder / awq / "model.safetensors") for awq in ("run", "load"))
        assert searched.keys() == loaded.keys()
        for name, tensor in searched.items():
            assert torch.equal(tensor, loaded[name]), name


def test_symmetric_checkpoints_and_scales_have_names_of_their_own(run, model, text_file):
    made = [run.result(*quantize(model, "--calib_data", text_file, *CALIBRATION, *more)) for more in ((), SYMMETRIC)]
    for each, name, symmetric in zip(made, ("tiny-w4-g64", "tiny-w4-g64-symmetric"), (False, True), strict=True):
        assert each["symmetric"] is symmetric and each["checkpoint"] == f"quantized_models/{name}-awq-gptq"
        assert each["scales"] == str(run.folder / "cache" / f"{name}.pt")
        decode = ("--task", "decode", "--model_name", model, "--prompt", "the value", *SYMMETRIC * symmetric)
        assert run.result(*decode)["checkpoint"] == each["checkpoint"]
    bits = [each["size"]["bits_per_weight"] for each in made]
    assert bits[0] - bits[1] == pytest.approx(4 / 64)  # a zero point of four bits less in each group
    again = run(*quantize(model, "--calib_data", text_file, *CALIBRATION, *SYMMETRIC, "--overwrite"))
    assert f"note: loading AWQ scales from {made[1]['scales']}" in again.notes


def test_a_checkpoint_of_another_default_is_found_too(run, model, text_file):
    """`--awq load` rounds plainly unless it is told otherwise; both kinds are AWQ's, and the better one goes first."""
    text = ("--calib_data", text_file, *CALIBRATION)
    decode = ("--task", "decode", "--model_name", model, "--prompt", "the value of this", "--max_new_tokens", 1)
    first = run.result(*quantize(model, *text, "--solver", "hqq"))
    loaded = run.result(*quantize(model, "--awq", "load"))
    assert loaded["solver"] == "rtn" and loaded["scales"] == first["scales"]
    assert run.result(*decode)["checkpoint"] == loaded["checkpoint"] == "quantized_models/tiny-w4-g64-awq"
    searched = run(*quantize(model, *text))
    assert searched.code == 0 and any("for another solver" in note for note in searched.notes)
    assert run.result(*decode)["checkpoint"] == "quantized_models/tiny-w4-g64-awq-gptq"
    again = run(*quantize(model, *text, "--overwrite"))
    assert again.code == 0 and any("loading AWQ scales" in note for note in again.notes)


@pytest.mark.parametrize("awq", ["none", "load"])
@pytest.mark.parametrize("solver", METHODS)
def test_calibration_options_are_refused_just_where_no_text_is_read(awq, solver):
    reads = METHODS[solver].reads_text(awq != "none")
    for distill, bits, read in ((0, None, reads), (5, None, True), (0, 3.5, True)):
        values = dict(task="quantize", awq=awq, solver=solver, distill=distill, bits_per_weight=bits)
        idle = any(holds(values) for holds, _, names in IDLE if "calib_data" in names)
        assert idle is not read


def assert_sizes(made: dict, folder, bits: int, head: bool) -> None:
    """Bytes are those of the file; bits a weight follow from the format's own layout."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    size = made["size"]
    assert size["quantized_bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    block = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3  # q and o, k and v, gate up and down
    embedding = 512 * 64
    assert size["float_bytes"] == 2 * (2 * (block + 2 * 64) + 64 + 2 * embedding)
    # Codes, then a bf16 scale and a packed zero point for each group of 64, then two int64 of shape.
    stored = 2 * block * (bits + (16 + bits) / 64) + (2 * LINEARS_A_BLOCK + head) * 128
    stored += head * embedding * (bits + (16 + bits) / 64)
    assert size["bits_per_weight"] == pytest.approx(stored / (2 * block + head * embedding), rel=1e-3)


def test_a_checkpoint_stands_alone_and_records_how_it_was_made(run, model):
    made = run.result(*quantize(model, "--awq", "none", "--flash_attention"))
    folder = run.folder / made["checkpoint"]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"model.safetensors", "awq_recipe.json"} <= names
    recipe = json.loads((folder / "awq_recipe.json").read_text())
    assert recipe["options"]["seed"] == 42 and recipe["flash_attention"] is True
    assert recipe["versions"].keys() == {"run-awq", "torch", "transformers"}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~os.umask(os.umask(0o022))}
    assert sorted(path.name for path in (run.folder / "quantized_models").iterdir()) == [folder.name]


def test_group_sizes(run, model, make_model, tmp_path):
    chosen = run(*quantize(model, "--awq", "none"))
    assert chosen.notes == ["note: group size 64: the largest of 128, 64, 32 that divides every layer"]
    assert "quantized_models/tiny-w4-g64-rtn" in chosen.out
    asked = run(*quantize(model, "--awq", "none", "--group_size", "32"))
    assert asked.notes == [] and "quantized_models/tiny-w4-g32-rtn" in asked.out
    wide = make_model(tmp_path / "Wide Model", hidden_size=128, num_attention_heads=2, intermediate_size=256)
    assert run.result(*quantize(wide, "--awq", "none"))["checkpoint"] == "quantized_models/wide-model-w4-g128-rtn"
    head = run.result(*quantize(wide, "--awq", "none", "--lm_head", "--lm_head_group_size", "64"))
    assert head["layers"][-1]["name"] == "lm_head" and head["layers"][-1]["group_size"] == 64


def test_scales_are_searched_once_and_loaded_afterwards(run, model, text_file):
    """`run` saves its file; `auto` and `load` make the same bytes of it; so does a second search."""
    calibration = ("--calib_data", text_file, *CALIBRATION, "--solver", "rtn")
    found = run.result(*quantize(model, "--awq", "run", *calibration))
    scales = run.folder / "cache" / "tiny-w4-g64.pt"
    assert (found["awq"], found["scales"]) == ("run", str(scales))
    kept, searched = scales.read_bytes(), weights(run, "tiny-w4-g64-awq")

    again = run(*quantize(model, *calibration, "--overwrite", "--json", "again.json"))
    assert f"note: loading AWQ scales from {scales}" in again.notes
    again = json.loads((run.folder / "again.json").read_text())
    assert again["awq"] == "load" and again["calibration"] == found["calibration"]
    assert weights(run, "tiny-w4-g64-awq") == searched

    run.result(*quantize(model, "--awq", "load", "--scales", scales, "--output", "quantized_models/loaded"))
    assert weights(run, "loaded") == searched
    run.result(*quantize(model, "--awq", "run", *calibration, "--output", "quantized_models/rerun"))
    assert weights(run, "rerun") == searched and scales.read_bytes() == kept
    run.result(*quantize(model, "--awq", "none", "--output", "quantized_models/rounded"))
    assert weights(run, "rounded") != searched


def test_auto_takes_only_a_file_that_fits(run, model, make_model, text_file, tmp_path):
    calibration = ("--calib_data", text_file, *CALIBRATION)
    run.result(*quantize(model, *calibration))
    scales = run.folder / "cache" / "tiny-w4-g64.pt"
    refused = f"{scales} was made from other calibration data, for another solver or from another model"
    searching = f"note: {refused}; searching anew and replacing it"

    for other in (("--seed", "7"), ("--n_samples", "3"), ("--seqlen", "16"), ("--no_bos",)):
        outcome = run(*quantize(model, *calibration, *other, "--overwrite"))
        assert outcome.code == 0 and searching in outcome.notes
    other_text = tmp_path / "prose.txt"
    other_text.write_text(text_file.read_text()[:20_000])
    assert searching in run(*quantize(model, "--calib_data", other_text, *CALIBRATION, "--overwrite")).notes
    namesake = make_model(tmp_path / "tiny", rms_norm_eps=1e-4)
    assert searching in run(*quantize(namesake, "--calib_data", other_text, *CALIBRATION, "--output", "namesake")).notes

    named = run(*quantize(model, *calibration, "--overwrite", "--scales", scales))
    assert named.error == f"{refused}; --awq load takes it as it is, --awq run replaces it"


def test_flash_attention_is_the_checkpoints_default(run, model):
    """Where it was set as the checkpoint was made; on, where nothing was said, here as there."""
    run.result(*quantize(model, "--awq", "none", "--no_flash_attention"))
    decode = ("--task", "decode", "--model_name", model, "--awq", "none", "--prompt", "the value")
    decode += ("--max_new_tokens", 2)
    assert run.result(*decode)["flash_attention"] is False
    assert run.result(*decode, "--flash_attention")["flash_attention"] is True
    for given, default in (((), True), (("--flash_attention",), True), (("--no_flash_attention",), False)):
        made = run.result(*quantize(model, "--awq", "none", "--overwrite", *given))
        assert made["flash_attention"] == (default if given else None)
        which = ("--task", "decode", "--checkpoint", made["checkpoint"], "--prompt", "the value", "--max_new_tokens", 2)
        assert run.result(*which)["flash_attention"] is default
        assert run.result(*which, "--no_flash_attention")["flash_attention"] is False
    bf16 = ("--task", "decode", "--model_name", model, "--precision", "bf16", "--prompt", "the", "--max_new_tokens", 2)
    assert run.result(*bf16)["flash_attention"] is True


def test_an_unknown_architecture_is_looked_at(run, model, tokenizer, tmp_path):
    sizes = AutoConfig.from_pretrained(model).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = AutoConfig.for_model("olmo", pad_token_id=0, **{name: sizes[name] for name in names})
    unknown = tmp_path / "olmo"
    AutoModelForCausalLM.from_config(config).save_pretrained(unknown)
    tokenizer.save_pretrained(unknown)
    found = run.result(*quantize(unknown, "--awq", "run", *CALIBRATION))
    assert [kind["found"] for kind in found["kinds"]] == ["discovered"]
    assert [edge["prev"] for edge in found["kinds"][0]["edges"]] == ["self_attn.v_proj", "mlp.up_proj"]  # bare norms
    made = run.result(*quantize(unknown, "--awq", "none"))
    assert len(made["layers"]) == 2 * LINEARS_A_BLOCK
    answer = run.result(
        "--task", "decode", "--checkpoint", made["checkpoint"], "--prompt", "the", "--max_new_tokens", 2
    )
    assert answer["responses"][0]["prompt_tokens"] == 2


def test_a_model_writes_its_own_calibration_text(run, model):
    chosen = ("--calib_data", "self", *CALIBRATION, "--solver", "rtn")
    made = run.result(*quantize(model, "--awq", "run", *chosen))
    assert made["calibration"]["source"] == "self" and made["calibration"]["samples_drawn"] == 4
    searched = weights(run, "tiny-w4-g64-awq")
    assert run.result(*quantize(model, *chosen, "--overwrite"))["awq"] == "load"
    assert weights(run, "tiny-w4-g64-awq") == searched
    run.result(*quantize(model, "--awq", "run", *chosen, "--overwrite"))
    assert weights(run, "tiny-w4-g64-awq") == searched
