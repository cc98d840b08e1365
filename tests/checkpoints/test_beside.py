"""What lies beside the weights goes along: a model's own code, processors, templates, licences, and no more."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from awq_cli.main import main
from checkpoints import beside
from checkpoints.beside import find_beside
from checkpoints.quantized import open_quantized
from qlinear.backends.reference import ReferenceBackend
from qlinear.progress import Note
from run_awq import quantize
from tests.quantized import quantized, recipe, save_float
from tests.tiny import tiny_tokens

CONFIGURATION = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
# Twice the logits of a llama, by way of a file that only this one imports.
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
from .doubling import double

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *arguments, **named):
        return double(super().forward(*arguments, **named))
"""
DOUBLING = """
def double(output):
    output.logits = 2 * output.logits
    return output
"""
CODE = {"configuration_own.py": CONFIGURATION, "modeling_own.py": MODELING, "doubling.py": DOUBLING}


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """Where transformers keeps copies of the code it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def own(tmp_path) -> Path:
    """A llama that says it is a model of its own code."""
    directory = save_float(tmp_path / "own")
    for name, source in CODE.items():
        (directory / name).write_text(source)
    (directory / "train.py").write_text("raise SystemExit")
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit_json(directory / "config.json", model_type="own_llama", architectures=["OwnForCausalLM"], auto_map=auto_map)
    return directory


def test_a_model_of_its_own_code_runs_from_its_checkpoint(own, tmp_path, monkeypatch, capsys):
    """Here, from the command, and in transformers; and it is the code that came along that runs."""
    output = tmp_path / "q"
    quantize(str(own), str(output), recipe(own), trust_remote_code=True)
    assert {path.name for path in output.glob("*.py")} == CODE.keys()
    assert all((output / name).read_text() == source for name, source in CODE.items())
    own.rename(tmp_path / "elsewhere")

    ours = open_quantized(output, ReferenceBackend("cpu/torch"), trust_remote_code=True)
    theirs = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True, dtype=torch.bfloat16).eval()
    assert type(ours.module).__name__ == type(theirs).__name__ == "OwnForCausalLM"
    with torch.no_grad():
        found, expected = (model(tiny_tokens()).logits.double() for model in (ours.module, theirs))
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    (output / "configuration_own.py").write_text("raise SystemExit")  # nothing runs it unless it is trusted
    edit_json(output / "config.json", model_type="llama", architectures=["LlamaForCausalLM"], auto_map={})
    plain = open_quantized(output, ReferenceBackend("cpu/torch")).module
    with torch.no_grad():
        assert torch.equal(2 * plain(tiny_tokens()).logits.double(), found)


def test_the_command_runs_it_too(own, tmp_path, monkeypatch, capsys):
    quantize(str(own), str(tmp_path / "q"), recipe(own), trust_remote_code=True)
    decode = ["--task", "decode", "--checkpoint", str(tmp_path / "q"), "--prompt", "w3 w4", "--max_new_tokens", "2"]
    for more in ([], ["--trust_remote_code"]):
        monkeypatch.setattr("sys.argv", ["run_awq.py", *decode, *more])
        if more:
            main()
        else:
            with pytest.raises(SystemExit) as end:
                main()
            assert end.value.code == 2 and "give --trust_remote_code to run them" in capsys.readouterr().err
    assert "response: " in capsys.readouterr().out


PLAIN = {
    "preprocessor_config.json": '{"image_processor_type": "X"}',
    "processor_config.json": "{}",
    "video_preprocessor_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "LICENSE": "yours",
    "License.md": "to keep",
    "NOTICE.txt": "us",
    "USE_POLICY.md": "well",
}


def test_plain_files_go_along_and_others_do_not(tmp_path):
    model = save_float(tmp_path / "m")
    others = {"train.py": "", "optimizer.pt": "x", "notes.txt": "mine", "additional_chat_templates/x.py": ""}
    for name, text in (PLAIN | others).items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(text)
    made = quantized(model, tmp_path / "q")
    assert {name: (made / name).read_text() for name in PLAIN} == PLAIN
    assert not any((made / name).exists() for name in others)
    known = json.loads((made / "awq_recipe.json").read_text())["files"]
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    assert sorted(known) == files
    quantized(model, made, overwrite=True)
    (made / "additional_chat_templates" / "mine.jinja").write_text("mine")
    with pytest.raises(Exception, match="q holds additional_chat_templates/mine.jinja, which this program did not put"):
        quantized(model, made, overwrite=True)


def test_what_the_checkpoint_wrote_itself_stays(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "chat_template.jinja").write_text("as saved")
    (tmp_path / "chat_template.jinja").write_text("as found")
    find_beside(tmp_path).copy(tmp_path / "made")
    assert (tmp_path / "made" / "chat_template.jinja").read_text() == "as saved"


def test_no_link_out_of_the_directory_and_nothing_large(tmp_path, monkeypatch):
    """A checkpoint may be published: what a link of somebody's model points at on this machine may not."""
    monkeypatch.setattr(beside, "MOST_BYTES", 2**20)
    model = save_float(tmp_path / "m")
    (tmp_path / "secret").write_text("key")
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    (model / "NOTICE").symlink_to("LICENSE.txt")
    (model / "LICENSE.txt").write_text("yours")
    (model / "USE_POLICY.md").write_bytes(bytes(2**20 + 1))
    os.mkfifo(model / "LICENSE.pipe")
    (model / "LICENSE.gone").symlink_to("nowhere")
    (model / "licenses").mkdir()
    auto_map = {"AutoModel": "../secret.X", "AutoConfig": "secret_code.X", "A": 7, "AutoTokenizer": ["sub/x.T", None]}
    edit_json(model / "processor_config.json", auto_map=auto_map)
    (tmp_path / "secret.py").write_text("")
    (model / "secret_code.py").symlink_to(tmp_path / "secret.py")
    events = []
    quantize(str(model), str(tmp_path / "q"), recipe(model), progress=events.append)
    assert [event.text for event in events if isinstance(event, Note)] == [
        "left out of the checkpoint: secret_code.py is a link out of the model's directory",
        "left out of the checkpoint: LICENSE is a link out of the model's directory",
        "left out of the checkpoint: USE_POLICY.md is larger than 1 MB",
    ]
    taken = {path.name for path in (tmp_path / "q").iterdir()} & {path.name for path in model.iterdir()}
    assert taken - {"config.json", "generation_config.json", "model.safetensors"} == {
        "LICENSE.txt", "NOTICE", "processor_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert (tmp_path / "q" / "NOTICE").read_text() == "yours" and not (tmp_path / "q" / "NOTICE").is_symlink()


def test_layers_that_transformers_passes_over(tmp_path):
    """Of those that predict several tokens, published beside the model, nothing gets lost without a word."""
    model = save_float(tmp_path / "m", "glm4_moe")
    weights = load_file(model / "model.safetensors")
    weights |= {f"model.layers.46.{name}.weight": torch.ones(4, 4) for name in ("eh_proj", "enorm")}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    events = []
    quantize(str(model), str(tmp_path / "q"), recipe(model), progress=events.append)
    assert [event.text for event in events if isinstance(event, Note)] == [
        "left out of the checkpoint: weights that transformers has no place for, such as "
        "model.layers.46.eh_proj.weight, in 2 tensors"
    ]


@pytest.mark.parametrize("text", ["", "[" * 10**5, "7", '{"auto_map": 7}', '{"auto_map": null}', '{"auto_map": {}}'])
def test_maps_that_make_no_sense(tmp_path, text):
    (tmp_path / "processor_config.json").write_text(text)
    assert find_beside(tmp_path).names == ("processor_config.json",)


def test_code_in_another_repository_is_left_there(tmp_path):
    edit_json(tmp_path / "config.json", auto_map={"AutoConfig": "org/name--configuration_own.OwnConfig"})
    (tmp_path / "configuration_own.py").write_text("")
    assert find_beside(tmp_path).names == ()


def test_the_hubs_cache_holds_links(tmp_path):
    """Each to where its content is kept, beside all snapshots of one model."""
    snapshot, blobs = tmp_path / "models--x--y" / "snapshots" / "0123", tmp_path / "models--x--y" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("LICENSE", "processor_config.json"):
        (blobs / f"sum of {name}").write_text(name)
        (snapshot / name).symlink_to(f"../../blobs/sum of {name}")
    (tmp_path / "secret").write_text("key")
    (snapshot / "NOTICE").symlink_to(tmp_path / "secret")
    found = find_beside(snapshot)
    assert found.names == ("LICENSE", "processor_config.json")
    assert found.left == ("NOTICE is a link out of the model's directory",)


def test_the_hub_is_asked_for_them(tmp_path, monkeypatch):
    """Whatever it is asked for with a pattern that transformers' own file names match."""
    from fnmatch import fnmatchcase

    from checkpoints.pretrained import open_pretrained

    asked = []

    def download(repo_id, allow_patterns, local_files_only, **_):
        asked.extend(allow_patterns)
        assert local_files_only is False
        return str(save_float(tmp_path / "hub"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert open_pretrained("org/name").directory == tmp_path / "hub"
    for name in (*PLAIN, *CODE, "tokenizer.model", "config.json", "model-00001-of-00002.safetensors"):
        assert any(fnmatchcase(name, pattern) for pattern in asked), name
    assert not any(fnmatchcase("pytorch_model.bin", pattern) for pattern in asked)
