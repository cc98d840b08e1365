"""Scales files: what is written comes back, and what is foreign, damaged or malicious is refused and runs nothing."""

import math
import pickle
from pathlib import Path

import pytest
import torch

from qlinear.errors import ScalesError
from scales import zoo
from scales.zoo import ScaleFile
from tests.scales.scale_files import GROUP, assert_one_line, by_block, file_for
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def assert_same(found: ScaleFile, expected: ScaleFile) -> None:
    assert found.meta == expected.meta
    assert [entry[:2] for entry in found.scales] == [entry[:2] for entry in expected.scales]
    assert [name for name, _ in found.clips] == [name for name, _ in expected.clips]
    tensors = [[entry[-1] for entry in file.scales + file.clips] for file in (found, expected)]
    assert all(torch.equal(got, wanted) for got, wanted in zip(*tensors, strict=True))


def test_what_is_written_comes_back(tmp_path, llama):
    file = file_for(llama)
    made_from = {"source": "builtin", "seed": 42}
    file.meta = {"w_bit": 4, "group_size": GROUP, "fingerprint": "ab", "calibration": made_from}
    path = tmp_path / "new" / "folder" / "m-w4-g32.pt"
    zoo.write(path, file)
    assert_same(zoo.read(path), file)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_of_the_zoo_has_lists_and_no_meta(tmp_path, llama):
    file = file_for(llama)
    scales = [(prev, list(layers), vector.half()) for prev, layers, vector in file.scales]
    torch.save({"scale": scales, "clip": file.clips}, tmp_path / "zoo.pt")
    found = zoo.read(tmp_path / "zoo.pt")
    assert found.meta == {} and [entry[:2] for entry in found.scales] == [entry[:2] for entry in file.scales]
    assert all(vector.dtype == torch.float32 for block in by_block(found, llama) for _, vector in block.scales)


class Attack:
    """Unpickled by anything laxer than torch's restricted reader, this makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("place", ["whole file", "beside the tensors", "torch format"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, place):
    marker, path = tmp_path / "executed", tmp_path / "evil.pt"
    if place == "torch format":
        torch.save({"scale": [], "clip": [], "meta": {"x": Attack(marker)}}, path)
    else:
        attack = Attack(marker)
        path.write_bytes(pickle.dumps(attack if place == "whole file" else {"scale": [attack], "clip": []}))
    with pytest.raises(ScalesError, match="refused") as error:
        zoo.read(path)
    assert_one_line(error)
    assert not marker.exists()
    if place == "whole file":  # the file would have done it
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle at all", bytes(100)])
def test_a_file_that_is_no_torch_file(tmp_path, content):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(ScalesError, match="bad.pt") as error:
        zoo.read(path)
    assert_one_line(error)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path, part, llama):
    path = tmp_path / "torn.pt"
    zoo.write(path, file_for(llama))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(ScalesError, match="torn.pt") as error:
        zoo.read(path)
    assert_one_line(error)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ScalesError, match=r"no scales file .*absent.pt; make one with `awq=run`, or .*`awq=none`$"):
        zoo.read(tmp_path / "absent.pt")


ONES = torch.ones(4)


@pytest.mark.parametrize(
    "content",
    [
        ONES,
        [],
        {},
        {"scale": []},
        {"scale": 1, "clip": []},
        {"scale": [("a", ("b",))], "clip": []},
        {"scale": [("a", 5, ONES)], "clip": []},
        {"scale": [("a", ("b",), [1.0])], "clip": []},
        {"scale": [("a", ("b",), torch.ones(4, dtype=torch.int64))], "clip": []},
        {"scale": [], "clip": ONES},
        {"scale": [], "clip": [("a", None)]},
        {"scale": [], "clip": [], "meta": 7},
        {"scale": [], "clip": [], "meta": {"calibration": "builtin"}},
        {"scale": [], "clip": [], "meta": {"w_bit": ONES}},
        {"scale": [], "clip": [], "meta": {"calibration": {"source": math.nan}}},
        {"scale": [], "clip": [], "meta": {"calibration": {"seed": math.inf}}},
        {"scale": [], "clip": [], "meta": {"calibration": {"source": "a\nb"}}},
        {"scale": [], "clip": [], "meta": {"calibration": {"source": "\x1b[31m"}}},
        {"weight": ONES},
    ],
    ids=repr,
)
def test_another_structure(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ScalesError, match="other.pt is not an AWQ result file") as error:
        zoo.read(tmp_path / "other.pt")
    assert_one_line(error)


WANTED = {"w_bit": 4, "group_size": 128, "symmetric": False, "fingerprint": "ab"}


@pytest.mark.parametrize(
    ("name", "meta", "message"),
    [
        ("m-w3-g128.pt", {}, "for 3 bits, not for 4 bits"),
        ("m-w4-g64.pt", {}, "for group size 64, not for group size 128"),
        ("m.pt", {"w_bit": 3}, "for 3 bits, not for 4 bits"),
        ("m-w4-g128.pt", {"w_bit": 3}, "for 3 bits, not for 4 bits"),
        ("m.pt", {"group_size": 32}, "for group size 32, not for group size 128"),
        ("m.pt", {"symmetric": True}, "for symmetric grids, not for asymmetric grids"),
        ("m.pt", {"fingerprint": "cd"}, "for the model of fingerprint cd, not for the model of fingerprint ab"),
    ],
)
def test_files_made_for_other_options(name, meta, message):
    with pytest.raises(ScalesError, match=f"{name} was made {message}"):
        zoo.check_made_for(Path(name), ScaleFile(meta=meta), WANTED)


def test_a_file_that_does_not_say_its_grid_is_for_asymmetric_ones():
    """As all of the zoo are, whose makers knew no other."""
    wanted = {**WANTED, "symmetric": True}
    zoo.check_made_for(Path("m.pt"), ScaleFile(meta=wanted), wanted)
    for meta in ({}, {"w_bit": 4, "fingerprint": "ab"}):
        with pytest.raises(ScalesError, match="m.pt was made for asymmetric grids, not for symmetric grids"):
            zoo.check_made_for(Path("m.pt"), ScaleFile(meta=meta), wanted)


@pytest.mark.parametrize("name", ["m.pt", "m-w4-g128.pt", "llama-2-7b-chat-w4-g128-awq.pt"])
@pytest.mark.parametrize("meta", [{}, WANTED, {**WANTED, "note": "anything"}])
def test_files_made_for_these_options(name, meta):
    zoo.check_made_for(Path(name), ScaleFile(meta=meta), WANTED)


@pytest.mark.parametrize(
    "name", ["\u6821\u6b63\u3000\u30c6\u30ad\u30b9\u30c8.txt", "a\u00a0b.txt", "\u0645\u06cc\u200c\u062e.txt"]
)
def test_names_of_any_script_come_back(tmp_path, llama, name):
    file = file_for(llama)
    file.meta = {"w_bit": 4, "calibration": {"source": name}}
    zoo.write(tmp_path / "a.pt", file)
    assert zoo.read(tmp_path / "a.pt").meta == file.meta
