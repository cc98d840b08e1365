"""What would fail after the last block fails before the first, whatever is asked for."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.torch import load_file

from checkpoints import writer
from checkpoints.pretrained import open_pretrained
from qlinear.errors import AwqError, CheckpointError
from qlinear.progress import Note, silent
from quantization.plan import Job, make_plan
from quantization.tally import least_bytes
from quantization.work import Work
from run_awq import Recipe, quantize
from tests.quantized import recipe, save_float

AWQ = pytest.mark.parametrize("awq", ["none", "run"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save_float(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def source(whole, tmp_path) -> Path:
    shutil.copy(whole.with_name("tiny.txt"), tmp_path / "tiny.txt")
    return shutil.copytree(whole, tmp_path / "tiny")


def refused(source: Path, monkeypatch, **changes) -> str:
    """The line of a run that never sees its first block, and leaves nothing."""

    def begun(*_):
        raise AssertionError("a block was begun")

    monkeypatch.setattr(Work, "quantize_unit", begun)
    with pytest.raises(AwqError) as raised:
        quantize(str(source), str(source.parent / "out" / "q"), recipe(source, **changes))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    assert not (source.parent / "out").exists()
    return str(raised.value)


@AWQ
def test_a_tokenizer_that_is_not_there(source, monkeypatch, awq):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    message = f"the tokenizer of tiny cannot be opened: {source} holds no tokenizer"
    assert message.partition(": ")[2] in refused(source, monkeypatch, awq=awq)


@AWQ
@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"model": {"type": "WordLevel"}}'])
def test_a_tokenizer_that_is_damaged(source, monkeypatch, awq, damage):
    (source / "tokenizer.json").write_bytes(damage)
    assert refused(source, monkeypatch, awq=awq).startswith("the tokenizer of tiny cannot be opened: ")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Exception("No space left on device (os error 28)"), "configuration or tokenizer cannot be saved: No space"),
        (TypeError("not\nthat"), "configuration or tokenizer cannot be saved: not that"),
        (OSError(28, "No space left on device"), "out/q: [Errno 28] No space left on device"),
    ],
)
def test_a_tokenizer_that_cannot_be_saved(source, monkeypatch, error, words):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", failing)
    assert words in refused(source, monkeypatch)


def test_a_tokenizer_that_is_not_read_back(source, monkeypatch):
    def forgetful(self, directory, **_):
        (Path(directory) / "tokenizer.json").write_text("{}")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", forgetful)
    assert refused(source, monkeypatch).startswith("the model's tokenizer, once saved, is not read back: ")


def test_a_configuration_that_cannot_be_saved(source, monkeypatch):
    def failing(self, directory, **_):
        raise TypeError("Object of type X is not JSON serializable")

    monkeypatch.setattr("transformers.LlamaConfig.save_pretrained", failing)
    assert refused(source, monkeypatch) == (
        "configuration or tokenizer cannot be saved: Object of type X is not JSON serializable"
    )


Usage = namedtuple("Usage", "total used free")


@AWQ
def test_a_disk_without_room(source, tmp_path, monkeypatch, awq):
    made = least_bytes(job(source, recipe(source)))
    monkeypatch.setattr("checkpoints.place.shutil.disk_usage", lambda _: Usage(10**9, 10**9, 10_000))
    assert refused(source, monkeypatch, awq=awq) == (
        f"{tmp_path}/out/q needs {made / 1e9:.3g} GB of disk and 1e-05 GB are free; free some, or give another `output`"
    )


def test_room_that_progress_has_taken_is_not_wanted_again(source, tmp_path, monkeypatch):
    monkeypatch.setattr("checkpoints.journal.WORTH", 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Work, "write_rest", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        quantize(str(source), str(tmp_path / "q"), recipe(source))
    needed = least_bytes(job(source, recipe(source)))
    kept = sum(size for _, size in json.loads((tmp_path / ".q.partial/journal.json").read_text())["journal"]["files"])
    assert 0.3 * needed < kept < needed
    for room in (needed - kept - 1, needed - kept):
        monkeypatch.setattr("checkpoints.place.shutil.disk_usage", lambda _, room=room: Usage(10**9, 10**9, room))
        if room < needed - kept:
            with pytest.raises(CheckpointError, match="GB of disk"):
                quantize(str(source), str(tmp_path / "q"), recipe(source), resume=True)
    quantize(str(source), str(tmp_path / "q"), recipe(source), resume=True)


def job(source: Path, wanted: Recipe) -> Job:
    opened = open_pretrained(str(source))
    return Job(opened, wanted.settled(), make_plan(opened, wanted), silent)


@pytest.mark.parametrize(
    ("model_type", "overrides", "changes"),
    [
        ("llama", {}, {}),
        ("llama", {}, dict(w_bit=3, lm_head=True, lm_head_group_size=64)),
        ("qwen2", dict(tie_word_embeddings=True), dict(lm_head=True)),
        ("opt", {}, dict(w_bit=3)),
        ("gemma3", {}, {}),
    ],
)
def test_the_estimate_is_that_of_the_checkpoint(tmp_path, model_type, overrides, changes):
    """Less only by what no weight is: shapes, and the filling of the last words of 3-bit rows."""
    source = save_float(tmp_path / "m", model_type, **overrides)
    quantize(str(source), str(tmp_path / "q"), recipe(source, **changes))
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "q" / "model.safetensors").values())
    head = 0
    if overrides.get("tie_word_embeddings"):  # quantized beside the embedding, which is counted
        head = sum(t.nbytes for n, t in load_file(tmp_path / "q" / "model.safetensors").items() if "lm_head" in n)
    estimate = least_bytes(job(source, recipe(source, **changes)))
    assert 0.97 * (stored - head) < estimate <= stored - head


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", "Expected an expression"),
        ("{{ messages | shout }}", "No filter named 'shout'"),
        ({"tool_use": "{{ messages }}", "rag": "{{ messages }}"}, "multiple chat templates"),
        ("{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% break %}{% endfor %}", None),
        ("{{ messages | tojson }}{{ raise_exception('x') }}{{ strftime_now('%d') }}", None),
    ],
)
def test_a_chat_template_that_is_not_understood_is_told(source, template, words, tmp_path):
    """It goes along all the same: for plain prompts nobody needs it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(source)
    events = []
    quantize(str(source), str(tmp_path / "q"), recipe(source), progress=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    if words is None:
        assert notes == []
    else:
        assert len(notes) == 1 and words in notes[0] and "\n" not in notes[0]
        assert notes[0].startswith("`chat` is not going to work: the model's chat template is not understood (")
    assert AutoTokenizer.from_pretrained(tmp_path / "q").chat_template == template


def test_scales_that_could_not_be_saved(source, tmp_path, monkeypatch):
    link, loop = tmp_path / "link.pt", tmp_path / "loop.pt"
    link.symlink_to(tmp_path / "nowhere" / "found.pt")
    loop.symlink_to(loop)
    for path, words in (
        (tmp_path, "that is a directory; give another `scales`"),
        (link, f"there is no directory {tmp_path}/nowhere; give another `scales`"),
        (loop, "Too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "tiny.txt" / "found.pt", f"{tmp_path}/tiny.txt is no directory; give another `scales`"),
        (tmp_path / "a\0b", "embedded null byte"),
    ):
        error = refused(source, monkeypatch, awq="run", scales=str(path))
        assert error.startswith("scales cannot be saved in ") and words in error
    monkeypatch.setenv("AWQ_CACHE", "/proc/none")  # root may write there, as far as the system tells
    assert refused(source, monkeypatch, awq="run").startswith("scales cannot be saved in /proc/none/")
    (tmp_path / "nowhere").mkdir()
    monkeypatch.undo()
    quantize(str(source), str(tmp_path / "q"), recipe(source, awq="run", scales=str(link)))
    assert (tmp_path / "nowhere" / "found.pt").is_file() and link.is_symlink()


def test_the_rehearsal_leaves_nothing(source, tmp_path, monkeypatch):
    seen, check = [], writer.Description.check_saved

    def looking(self, directory):
        seen.append(sorted(path.name for path in directory.iterdir()))
        check(self, directory)

    monkeypatch.setattr(writer.Description, "check_saved", looking)
    quantize(str(source), str(tmp_path / "q"), recipe(source))
    files = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert seen == [files]
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == sorted(
        [*files, "README.md", "awq_recipe.json", "model.safetensors"]
    )
