"""Two models of one name: the wrong one is neither run nor replaced."""

import json
import shutil
from pathlib import Path

import pytest

from checkpoints.local import model_slug
from checkpoints.pretrained import fingerprint_at_hand, open_pretrained
from tests.awq_cli.conftest import CALIBRATION

PLAIN = ("--awq", "none")
PROMPT = ("--prompt", "the value", "--max_new_tokens", "1")
MADE = "quantized_models/checkpoint-500-w4-g64-rtn"


def quantize(model, *more) -> tuple:
    return ("--task", "quantize", "--model_name", model, *PLAIN, *more)


def decode(model, *more) -> tuple:
    return ("--task", "decode", "--model_name", model, *PLAIN, *PROMPT, *more)


@pytest.fixture
def two(run, make_model) -> tuple[Path, Path]:
    """run1/checkpoint-500 and run2/checkpoint-500, beside each other where the command runs."""
    folders = [Path("run1/checkpoint-500"), Path("run2/checkpoint-500")]
    for folder, eps in zip(folders, (1e-5, 1e-4), strict=True):
        make_model(run.folder / folder, rms_norm_eps=eps)
    return folders


def short(model: Path) -> str:
    return fingerprint_at_hand(str(model), False)[:12]


def test_the_other_one_is_not_run(run, two):
    first, second = two
    one, other = (short(run.folder / model) for model in two)
    run.result(*quantize(first))
    assert run.result(*decode(first))["checkpoint"] == MADE
    assert run(*decode(second)).error == (
        f"{MADE} was made of run1/checkpoint-500 (fingerprint {one}), not of run2/checkpoint-500 (fingerprint {other})"
        f"; quantize that to another --output, or give --checkpoint to run this one"
    )
    assert run.result("--task", "decode", "--checkpoint", MADE, *PROMPT)["checkpoint"] == MADE


def test_the_other_one_is_not_replaced(run, two):
    first, second = two
    one, other = (short(run.folder / model) for model in two)
    run.result(*quantize(first))
    before = (run.folder / MADE / "model.safetensors").stat().st_mtime_ns
    for more in ((), ("--overwrite",)):
        assert run(*quantize(second, *more)).error == (
            f"{MADE} is there already, made of run1/checkpoint-500 (fingerprint {one}); give another --output for "
            f"run2/checkpoint-500 (fingerprint {other})"
        )
    assert (run.folder / MADE / "model.safetensors").stat().st_mtime_ns == before
    assert run(*quantize(second, "--output", "second")).code == 0
    assert run(*quantize(first, "--overwrite")).code == 0


def test_the_progress_of_the_other_one_is_not_replaced(run, two, monkeypatch):
    from checkpoints import journal
    from quantization.work import Work

    monkeypatch.setattr(journal, "WORTH", 0)
    first, second = two
    with monkeypatch.context() as patch:
        patch.setattr(Work, "write_rest", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*quantize(first)).code == 130
    one, other = (fingerprint_at_hand(str(run.folder / model), False)[:16] for model in two)
    partial = run.folder.resolve() / "quantized_models/.checkpoint-500-w4-g64-rtn.partial"
    assert run(*quantize(second)).error == (
        f"a run that stopped has left its progress for {MADE}, of a model of fingerprint {one}, not {other}; give "
        f"another --output, or remove {partial}"
    )
    assert run(*quantize(first, "--resume")).code == 0


def test_a_model_that_has_changed_is_told_and_may_be_made_again(run, two):
    first, second = two
    one, other = (short(run.folder / model) for model in two)
    run.result(*quantize(first))
    shutil.rmtree(run.folder / first)
    shutil.copytree(run.folder / second, run.folder / first)
    assert run(*decode(first)).error == (
        f"{MADE} was made of run1/checkpoint-500 (fingerprint {one}), run1/checkpoint-500 has changed (fingerprint "
        f"{other}) since; make it again with --overwrite, or give --checkpoint to run this one"
    )
    assert run(*quantize(first)).error.startswith(f"{MADE} exists already; give --overwrite")
    assert run(*quantize(first, "--overwrite")).code == 0 and run(*decode(first)).code == 0


def test_a_copy_of_the_model_is_the_same(run, two):
    first, _ = two
    run.result(*quantize(first))
    copy = Path("elsewhere/checkpoint-500")
    shutil.copytree(run.folder / first, run.folder / copy)
    assert run.result(*decode(copy))["checkpoint"] == MADE
    assert run(*quantize(copy, "--overwrite")).code == 0


def test_a_model_that_is_not_at_hand_counts_by_its_place(run, two):
    """Its weights were removed to save room, say; or it was quantized under another version of a library."""
    first, second = two
    run.result(*quantize(first))
    for folder in two:
        (run.folder / folder / "model.safetensors").rename(run.folder / folder.parent / "kept")
    assert run.result(*decode(first))["checkpoint"] == MADE
    assert run.result(*decode(run.folder / first))["checkpoint"] == MADE
    assert run(*decode(second)).error.startswith(f"{MADE} was made of run1/checkpoint-500 (fingerprint ")
    for folder in two:
        (run.folder / folder.parent / "kept").rename(run.folder / folder / "model.safetensors")

    recipe = run.folder / MADE / "awq_recipe.json"
    content = json.loads(recipe.read_text())
    recipe.write_text(json.dumps(content | {"versions": {"transformers": "4"}, "fingerprint": "0" * 64}))
    assert run.result(*decode(first))["checkpoint"] == MADE
    assert "not of run2/checkpoint-500" in run(*decode(second)).error


@pytest.mark.parametrize("content", ["", "{}", '{"options": []}', '{"options": {"model_name": 7}}', '{"versions": 3}'])
def test_a_checkpoint_that_does_not_say_what_it_is(run, two, content):
    first, _ = two
    run.result(*quantize(first))
    (run.folder / MADE / "awq_recipe.json").write_text(content)
    assert run(*decode(first)).error.startswith(
        f"{MADE} was made of a model that its recipe does not name, not of run1/checkpoint-500 (fingerprint "
    )
    assert run("--task", "decode", "--checkpoint", MADE, *PROMPT).code == 0


def test_another_group_size_may_be_of_the_right_one(run, two):
    """The first checkpoint of the name is of the other model; the second is what was asked for."""
    first, second = two
    run.result(*quantize(first))
    run.result(*quantize(second, "--group_size", "32"))
    assert run.result(*decode(second))["checkpoint"] == "quantized_models/checkpoint-500-w4-g32-rtn"
    assert run.result(*decode(first))["checkpoint"] == MADE


def test_nothing_is_fetched_to_find_out(run, two, monkeypatch):
    first, _ = two
    (run.folder / "org").mkdir()
    made = run.result(*quantize(first, "--output", "quantized_models/checkpoint-500-w4-g64-rtn"))
    recipe = run.folder / made["checkpoint"] / "awq_recipe.json"
    content = json.loads(recipe.read_text())
    content["options"]["model_name"] = "org/checkpoint-500"
    recipe.write_text(json.dumps(content))
    asked = []

    def download(**named):
        asked.append(named["local_files_only"])
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert run.result(*decode("org/checkpoint-500"))["checkpoint"] == MADE
    assert "not of other/checkpoint-500;" in run(*decode("other/checkpoint-500")).error
    assert asked == [True, True]


def test_names_in_any_script_are_names(run, make_model):
    """They were all called `model`."""
    for name, slug in (("模型一", "模型一"), ("Модель 2", "модель-2"), ("Modèle", "modèle"), ("...", "model")):
        assert model_slug(name) == slug
    first, second = (
        make_model(run.folder / name, rms_norm_eps=eps) for name, eps in (("模型一", 1e-5), ("模型二", 1e-4))
    )
    for model in (first, second):
        made = run.result(*quantize(model))["checkpoint"]
        assert made == f"quantized_models/{model.name}-w4-g64-rtn"
        assert run.result(*decode(model))["checkpoint"] == made


def test_a_long_name_leaves_room_for_the_recipe(run, make_model, text_file):
    for name in ("x" * 255, "é" * 127):
        model = make_model(run.folder / name)
        assert len(open_pretrained(str(model)).name.encode()) == 150
        more = (*CALIBRATION, "--calib_data", text_file, "--lm_head", "--flash_attention")
        made = run.result("--task", "quantize", "--model_name", model, *more)
        assert (run.folder / made["checkpoint"]).is_dir()
