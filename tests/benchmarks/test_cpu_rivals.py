"""Other programs in the race of whole models: who is there, what is made for each, and how each is driven."""

import json
import stat
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from benchmarks.cpu import contestant, models, rivals
from benchmarks.cpu.contestant import Spec
from benchmarks.cpu.report import Engine
from benchmarks.cpu.rivals import GENAI, LLAMA, OPENVINO, RIVALS, NotMade, of_directory


def fake_python(folder, script: str) -> str:
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


@pytest.mark.parametrize("rival", (LLAMA, OPENVINO, GENAI), ids=lambda rival: rival.module)
@pytest.mark.parametrize(
    "script, version",
    [("echo 0.3.36", "0.3.36"), ("echo found a device; echo 0.3.36", "0.3.36"), ("exit 1", None), ("true", None)],
)
def test_a_rivals_version_is_what_its_python_says_last(tmp_path, rival, script, version):
    assert rival.version(fake_python(tmp_path, script)) == version


def test_a_python_that_is_not_there_has_no_rival(tmp_path):
    assert LLAMA.version(str(tmp_path / "none")) is None


def test_what_a_report_says_of_them():
    assert [rival.told for rival in RIVALS] == [
        "llama.cpp through llama-cpp-python", "ik_llama.cpp", "OpenVINO", "ORT GenAI through onnxruntime-genai"
    ]  # fmt: skip


def checkpoint(folder, tied: bool):
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied, "vocab_size": 7, "hidden_size": 32}))
    return folder


@pytest.mark.parametrize(
    "rival, tied, embedding", [(OPENVINO, False, 7 * 35), (OPENVINO, True, 0), (GENAI, False, 896), (GENAI, True, 0)]
)
def test_a_token_reads_all_but_the_embedding(tmp_path, rival, tied, embedding):
    for name, size in (("model.bin", 1000), ("model.onnx.data", 2000), ("model.xml", 70), ("config.json", 80)):
        (tmp_path / name).write_bytes(bytes(size))
    entry = of_directory(rival, tmp_path, checkpoint(tmp_path, tied))
    assert (entry.way.engine, entry.stored_bytes, entry.read_bytes) == (rival.engine, 3000, 3000 - embedding)


MAKES = 'mkdir "$4" && echo "$1 $2 $3" > "$4"/model.bin'


def test_its_interpreter_makes_what_it_reads_once(tmp_path, monkeypatch):
    python = fake_python(tmp_path, MAKES)
    monkeypatch.setattr(models, "_random", lambda model, work: [SimpleNamespace(path=plain, way=way)])
    plain, way = checkpoint(tmp_path, False), SimpleNamespace(weights="w4")
    find = partial(models.entries, "1.1b", tmp_path, {Engine.OPENVINO: python}, pytest.fail)
    ours, theirs = find()
    assert theirs.way.engine is Engine.OPENVINO and theirs.path == tmp_path / "1.1b-openvino"
    assert (theirs.path / "model.bin").read_text() == f"-m benchmarks.cpu.openvino_files {plain}\n"
    assert find()[1] == theirs  # a second time it could not: the folder is there


def test_of_mixtures_those_that_read_gguf_alone_have_one(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_random", lambda *_: [SimpleNamespace(path=None, way=SimpleNamespace(weights="w4"))])
    monkeypatch.setattr(models, "_gguf", lambda model, work, engine: engine)
    programs = dict.fromkeys((rival.engine for rival in RIVALS), "python")
    assert models.entries("30b-a3b-12l", tmp_path, programs, pytest.fail)[1:] == [Engine.LLAMA, Engine.IK]


def test_who_cannot_make_its_own_is_left_out_in_one_line_and_the_others_run(tmp_path, monkeypatch):
    python = fake_python(tmp_path, "echo Traceback >&2; echo 'ImportError: nncf' >&2; exit 1")
    ours, told = SimpleNamespace(path=tmp_path, way=SimpleNamespace(weights="w4")), []
    monkeypatch.setattr(models, "_random", lambda *_: [ours])
    assert models.entries("1.1b", tmp_path, {Engine.GENAI: python}, told.append) == [ours]
    assert told == [f"1.1b: ORT GenAI is left out: {python} -m benchmarks.cpu.genai_files: ImportError: nncf"]


def test_what_has_no_room_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "available_bytes", lambda: 7_000_000_000)
    monkeypatch.setattr(rivals, "_stored", lambda directory: 1_000_000_000)
    with pytest.raises(NotMade, match="^its model takes about 8 GB to make, and 7 GB are free$"):
        OPENVINO.make("no such python", tmp_path, tmp_path / "made")


@pytest.fixture
def module(monkeypatch):
    """Puts a stand-in where a program's module would be."""
    readers = ("benchmarks.cpu.openvino_reader", "benchmarks.cpu.genai_reader")

    def put(name: str, **members) -> None:
        fake = ModuleType(name)
        fake.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, fake)

    for reader in readers:
        monkeypatch.delitem(sys.modules, reader, raising=False)
    yield put
    for reader in readers:
        sys.modules.pop(reader, None)


class OpenVino:
    """A core, a compiled model and a request in one."""

    inputs = [SimpleNamespace(names={name}) for name in ("input_ids", "attention_mask", "beam_idx")]

    def __init__(self):
        self.asked, self.read, self.reset = None, [], 0

    def compile_model(self, *asked):
        self.asked = asked
        return self

    def create_infer_request(self):
        return self

    def reset_state(self):
        self.reset += 1

    def infer(self, given):
        self.read.append({name: value.tolist() for name, value in given.items()})

    def get_tensor(self, name):
        return SimpleNamespace(data=np.zeros((1, 1, 5), np.float32))


def test_openvino_is_told_what_lies_before(module):
    core = OpenVino()
    module("openvino", Core=lambda: core)
    reader = contestant.open_reader(Spec(Engine.OPENVINO, "made", 3, 24))
    file, device, how = core.asked
    assert (file, device, how["INFERENCE_NUM_THREADS"]) == ("made/openvino_model.xml", "CPU", 3)
    reader.begin((4, 5))
    reader.go_on(6)
    first = {"input_ids": [[4, 5]], "attention_mask": [[1, 1]], "beam_idx": [0]}
    then = {"input_ids": [[6]], "attention_mask": [[1, 1, 1]], "beam_idx": [0]}
    assert core.read == [first, then] and core.reset == 1 and reader.facts.weights is None


class Generator:
    made = []

    def __init__(self, model, params):
        self.room, self.read = params.room, []
        self.made.append(self)

    def append_tokens(self, tokens):
        self.read.append(tokens)

    def get_logits(self):
        return np.zeros((1, 1, 5), np.float32)


class Params:
    def __init__(self, model):
        pass

    def set_search_options(self, max_length):
        self.room = max_length


def test_genai_gets_a_generator_a_prompt(module, monkeypatch):
    laid = []
    monkeypatch.setattr(Generator, "made", [])
    config = SimpleNamespace(overlay=laid.append)
    module(
        "onnxruntime_genai",
        Config=lambda path: config,
        Model=lambda config: "model",
        GeneratorParams=Params,
        Generator=Generator,
    )
    reader = contestant.open_reader(Spec(Engine.GENAI, "made", 3, 24))
    assert json.loads(laid[0]) == {"model": {"decoder": {"session_options": {"intra_op_num_threads": 3}}}}
    for prompt in ((4, 5), (8,)):
        reader.begin(prompt)
        reader.go_on(6)
    assert [(one.room, one.read) for one in Generator.made] == [(25, [[4, 5], [6]]), (25, [[8], [6]])]
