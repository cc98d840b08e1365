"""Progress that was damaged, or that says what no run has said: not gone on with, and not lost."""

import json
from pathlib import Path

import pytest

from checkpoints.journal import Snapshot, sealed
from checkpoints.writer import CheckpointWriter
from qlinear.errors import CheckpointError
from tests.checkpoints.test_journal import contents, values

DAMAGED = r"progress in .*\.q\.partial is damaged \(.*; start over without"
NONSENSE = [
    {},
    {"number": "7"},
    {"number": 0},
    {"number": None},
    {"fingerprint": []},
    {"fingerprint": {"x": [1]}},
    {"fingerprint": {"x": "y" * 10**6}},
    {"record": {}},
    {"record": None},
    {"record": [1]},
    {"files": []},
    {"files": [["../../secret.safetensors", 3]]},
    {"files": [["000001.safetensors"]]},
    {"files": [["000001.safetensors", "400"]]},
    {"files": [["000001.safetensors", 399]]},
    {"files": [["000001.safetensors", 400], ["000001.safetensors", 400]]},
    {"files": [["000002.safetensors", 400]]},
    {"files": {"000001.safetensors": 400}},
    {"files": None},
    {"state": "/etc/passwd"},
    {"state": None},
    {"state": "000001.safetensors"},
    {"state": "000009.safetensors"},
    {"kept": 3},
    {"kept": {}},
    {"kept": {"000002.safetensors": []}},
    {"kept": {"000002.safetensors": ["other"]}},
    {"kept": {"000002.safetensors": "k"}},
    {"sums": {}},
    {"sums": None},
    {"sums": {"000001.safetensors": 1, "000002.safetensors": 2, "000003.safetensors": 3}},
    {"unknown": 1},
]


@pytest.fixture
def progress(tmp_path) -> Path:
    with CheckpointWriter(tmp_path / "q") as made:
        made.add("x", values(0))
        made.end_step(lambda: Snapshot({"done": 1}, {"k": values(1)}, {"s": values(2)}))
    return tmp_path / ".q.partial"


def refused_and_kept(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(CheckpointError, match=DAMAGED) as raised, CheckpointWriter(folder.parent / "q", resume=True):
        pass
    assert len(str(raised.value)) < 600 and "\n" not in str(raised.value)
    assert contents(folder) == before


@pytest.mark.parametrize("change", NONSENSE, ids=repr)
def test_a_journal_that_makes_no_sense(progress, change):
    """Whether or not its digest is made to fit: nothing is gone on with, and nothing lost."""
    path = progress / "journal.json"
    good = path.read_text()
    said = json.loads(good)["journal"]
    said = said | change if change else change
    for text in (json.dumps(json.loads(good) | {"journal": said}), sealed(said)):
        path.write_text(text)
        refused_and_kept(progress)
    path.write_text(good)
    with CheckpointWriter(progress.parent / "q", resume=True) as made:
        assert made.journal.record == {"done": 1}


@pytest.mark.parametrize("file", ["journal.json", "000001.safetensors", "000002.safetensors", "000003.safetensors"])
def test_every_byte_of_the_progress_counts(progress, file):
    """A bit that has tipped anywhere is seen."""
    path = progress / file
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        refused_and_kept(progress)
    path.write_bytes(good)
    CheckpointWriter(progress.parent / "q", resume=True).__enter__()
