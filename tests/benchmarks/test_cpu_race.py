"""The race between contestants: what each is asked, what is made of its answers, and what a stray line of it means."""

import io
import os
import sys
from types import ModuleType

import pytest

from benchmarks.cpu import contestant, race
from benchmarks.cpu.contestant import Answer, Facts, Job, Spec, Weights
from benchmarks.cpu.race import Entry, FirstToken, Race
from benchmarks.cpu.report import Engine, Limit, ModelSize, Way
from benchmarks.cpu.roofs import Roof
from benchmarks.typed import from_json, to_json

RACE = Race(prompt=20, new=4, rounds=2, starts=3, threads=2, programs={Engine.LLAMA: "python-of-llama"})
SIZE = ModelSize(900, 100, 10)
FUSED, LLAMA = Way(Engine.FUSED, "w4"), Way(Engine.LLAMA, "Q4_0")
OURS = Facts(0.5, 7000, Weights(5000, 4000, SIZE))
THEIRS = Facts(0.1, 300, None)


def stored(folder, size: int):
    (folder / "model.safetensors").write_bytes(bytes(size))
    (folder / "config.json").write_bytes(bytes(99))
    return folder


def test_an_entrys_size_is_that_of_its_weights(tmp_path):
    assert Entry(FUSED, stored(tmp_path, 1234)).stored_bytes == 1234
    assert Entry(LLAMA, tmp_path / "config.json").stored_bytes == 99


def test_what_a_contestant_is_started_with(tmp_path):
    assert RACE.spec(Entry(FUSED, tmp_path)) == Spec(Engine.FUSED, str(tmp_path), 2, 24)
    short = Race(4, 1, 2, 1, 2, {})  # the first prompt has 16 tokens
    assert short.spec(Entry(FUSED, tmp_path)).context == 16
    assert RACE.tokens(3) == (3, 21, 41)


def test_a_row_is_the_median_of_the_rounds(tmp_path):
    answers = [Answer(0.4, 0.02, 10, 20), Answer(0.2, 0.01, 11, 21), Answer(0.9, 0.06, 12, 22)]
    first = [FirstToken(3.0, 0.3, 1.0), FirstToken(1.0, 0.1, 4.0), FirstToken(2.0, 0.2, 2.0)]
    entry = Entry(FUSED, stored(tmp_path, 600))
    start = race.start_of(entry, OURS, answers[-1], first, 240)
    assert (start.starts, start.first_token_s, start.load_s, start.new_memory_gb_s) == (3, 2.0, 0.2, 2.0)
    assert (start.stored_bytes, start.weight_bytes, start.cache_bytes, start.runtime_bytes) == (600, 5000, 240, 7000)
    assert (start.held_bytes, start.peak_bytes) == (12, 22)
    row = race.row(entry, OURS, answers, start)
    assert (row.way, row.read_bytes, row.prompt.seconds, row.token.seconds) == (FUSED, 4000, 0.4, 0.02)


def test_what_llama_cpp_cannot_say_is_said_of_its_file(tmp_path):
    entry = Entry(LLAMA, stored(tmp_path, 600), read_bytes=550)
    start = race.start_of(entry, THEIRS, Answer(1.0, 1.0, 1, 2), [FirstToken(1.0, 1.0, 1.0)], 240)
    assert start.weight_bytes == 600
    assert race.row(entry, THEIRS, [Answer(1.0, 1.0, 1, 2)] * 2, start).read_bytes == 550


class Fake:
    """Answers with the number of the round, its own number a thousand times over."""

    begun: list["Fake"] = []
    number = os.getpid()

    def __init__(self, entry: Entry, race: Race):
        self.entry, self.facts, self.jobs, self.closed = entry, THEIRS if entry.way is LLAMA else OURS, [], False
        self.first = FirstToken(len(self.begun) + 1.0, 0.5, 2.0)
        self.begun.append(self)

    def ask(self, job: Job) -> Answer:
        self.jobs.append(job)
        return Answer(float(len(self.jobs)), len(self.jobs) / 10, 1, 2)

    def close(self) -> None:
        self.closed = True


def test_a_race(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "Contestant", Fake)
    monkeypatch.setattr(Fake, "begun", [])
    entries = [Entry(FUSED, stored(tmp_path, 600)), Entry(LLAMA, tmp_path, read_bytes=550)]
    roofs = [Roof(Limit.READ, 1e9, lambda: None), Roof(Limit.FP32, 1e9, lambda: None)]
    run = race.run("tiny", entries, RACE, roofs)
    assert (run.model, run.prompt_tokens, run.new_tokens, run.size) == ("tiny", 20, 4, SIZE)
    assert [row.way for row in run.rows] == [FUSED, LLAMA] and set(run.limits.rates) == {Limit.READ, Limit.FP32}
    # three starts each, the last of which races: a warm-up and two rounds, of which the second and third count
    assert len(Fake.begun) == 6 and all(fake.closed for fake in Fake.begun)
    assert [len(fake.jobs) for fake in Fake.begun] == [0, 0, 3, 0, 0, 3]
    assert set(Fake.begun[2].jobs) == {Job(RACE.tokens(24)[:20], RACE.tokens(24)[20:])}
    assert [row.prompt.seconds for row in run.rows] == [2.5, 2.5] and run.rows[0].token.seconds == pytest.approx(0.25)
    assert [row.start.first_token_s for row in run.rows] == [2.0, 5.0] and run.rows[0].start.cache_bytes == 24 * 10


def test_what_a_contestant_writes_is_read():
    line = '{"load_s": 0.1, "runtime_bytes": 300, "weights": null}\n'
    assert race.parse(Facts, line, LLAMA) == THEIRS
    assert race.parse(Facts, to_json(OURS), FUSED) == OURS


@pytest.mark.parametrize("line", ["llama_model_loader: loaded\n", '{"load_s": 0.1}\n', "[]\n"])
def test_what_else_it_writes_is_named(line):
    with pytest.raises(SystemExit) as stop:
        race.parse(Facts, line, LLAMA)
    assert str(stop.value).startswith(f"llama.cpp Q4_0 wrote {line.strip()!r}, which is no Facts: ")


class Reader:
    facts = THEIRS

    def __init__(self):
        self.read = []

    def begin(self, tokens):
        self.read.append(tokens)

    def go_on(self, token):
        self.read.append(token)


def test_a_job_is_read_in_order_and_timed():
    reader = Reader()
    answer = contestant.do(Job((1, 2), (3, 4)), reader)
    assert reader.read == [(1, 2), 3, 4] and answer.prompt_s > 0 and answer.token_s > 0
    assert 0 < answer.held_bytes <= answer.peak_bytes
    assert contestant.do(Job((1,), ()), reader).token_s is None


def test_a_contestant_answers_line_by_line(monkeypatch, capsys):
    spec = Spec(Engine.LLAMA, "x.gguf", 2, 24)
    monkeypatch.setattr(sys, "argv", ["contestant", to_json(spec)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(to_json(Job((1,), (2,))) + "\n" + to_json(Job((1,), ())) + "\n"))
    opened = []
    monkeypatch.setattr(contestant, "open_reader", lambda given: opened.append(given) or Reader())
    contestant.main()
    facts, one, other = capsys.readouterr().out.splitlines()
    assert opened == [spec] and from_json(Facts, facts) == THEIRS
    assert from_json(Answer, one).token_s > 0 and from_json(Answer, other).token_s is None


@pytest.fixture
def llama(monkeypatch):
    """A stand-in for llama_cpp that notes what is asked of it."""
    fake = ModuleType("llama_cpp")
    fake.calls, fake.status = [], 0
    fake.params = type("Params", (), {})()
    fake.llama_context_default_params = lambda: fake.params
    fake.llama_model_default_params = lambda: None
    fake.llama_log_callback = lambda function: function
    fake.llama_log_set = lambda *_: None
    fake.llama_model_load_from_file = lambda path, params: fake.calls.append(path)
    fake.llama_init_from_model = lambda *_: "context"
    fake.llama_get_memory = lambda context: "memory"
    fake.llama_memory_clear = lambda memory, data: fake.calls.append("clear")
    fake.llama_token = __import__("ctypes").c_int32
    fake.llama_batch_get_one = lambda array, count: list(array)[:count]
    fake.llama_decode = lambda context, batch: fake.calls.append(len(batch)) or fake.status
    fake.llama_synchronize = lambda context: None
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    monkeypatch.delitem(sys.modules, "benchmarks.cpu.llama_cpp_reader", raising=False)
    yield fake
    sys.modules.pop("benchmarks.cpu.llama_cpp_reader", None)


def test_llama_cpp_reads_a_prompt_from_its_start_512_tokens_at_a_time(llama):
    reader = contestant.open_reader(Spec(Engine.LLAMA, "x.gguf", 3, 1200))
    assert (llama.params.n_ctx, llama.params.n_threads, llama.params.n_threads_batch) == (1200, 3, 3)
    reader.begin(tuple(range(1030)))
    reader.go_on(7)
    assert llama.calls == [b"x.gguf", "clear", 512, 512, 6, 1] and reader.facts.weights is None
    llama.status = 1
    with pytest.raises(SystemExit, match="llama_decode failed"):
        reader.go_on(7)
