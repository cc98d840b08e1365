"""Small files that are whole or not there, and what must not be put aside for them: links, pipes, devices."""

import json
import math
import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from qlinear.files import is_written_through, json_text, why_not_writable, write_text_whole, write_whole


def half_written(file: BinaryIO) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


def interrupted(file: BinaryIO) -> None:
    file.write(b"half")
    raise KeyboardInterrupt


def test_a_file_has_its_name_once_it_is_whole(tmp_path):
    path, seen = tmp_path / "result.json", []

    def write(file: BinaryIO) -> None:
        file.write(b"whole")
        seen.append(path.read_text() if path.exists() else None)

    write_whole(path, write)
    path.write_text("older")
    write_whole(path, write)
    assert seen == [None, "older"]
    assert path.read_text() == "whole" and os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("before", [None, "older"])
@pytest.mark.parametrize(("write", "error"), [(half_written, OSError), (interrupted, KeyboardInterrupt)])
def test_nothing_is_left_of_a_write_that_fails(tmp_path, write, error, before):
    path = tmp_path / "result.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises(error):
        write_whole(path, write)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == (
        {} if before is None else {"result.json": before}
    )


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text_whole(tmp_path / "absent" / "result.json", "text")
    assert os.listdir(tmp_path) == []


def test_a_failed_rename_leaves_nothing_either(tmp_path):
    """A directory has the name by the time the file is whole."""
    path = tmp_path / "result.json"

    def write(file: BinaryIO) -> None:
        file.write(b"whole")
        path.mkdir()

    with pytest.raises(OSError):
        write_whole(path, write)
    assert os.listdir(tmp_path) == ["result.json"] and path.is_dir()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_what_it_points_to_is_written(tmp_path, there):
    target, link = tmp_path / "elsewhere" / "target.json", tmp_path / "link.json"
    target.parent.mkdir()
    if there:
        target.write_text("older")
    link.symlink_to(target)
    write_text_whole(link, "new")
    assert link.is_symlink() and not target.is_symlink() and target.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link.json"]
    assert os.listdir(target.parent) == ["target.json"]


def test_a_pipe_is_written_into(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text_whole(pipe, "through")
    reader.join(timeout=10)
    assert read == ["through"] and pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_a_device_is_written_to_and_stays():
    null = Path(os.devnull)
    before = null.stat().st_rdev
    write_text_whole(null, "nothing of it")
    assert null.is_char_device() and null.stat().st_rdev == before
    assert not null.with_name(f"{null.name}.partial").exists()


def test_what_is_written_through(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    names = ("file", "absent", "dangling", "link", "pipe")
    assert [name for name in names if is_written_through(tmp_path / name)] == ["dangling", "link", "pipe"]


def test_two_writers_never_show_a_torn_file(tmp_path):
    """Each has a file of its own until it is whole."""
    path, texts = tmp_path / "shared.json", ("a" * 300_000, "b" * 300_000)
    write_text_whole(path, texts[0])
    stop, torn = threading.Event(), []

    def keep_writing(text: str) -> None:
        while not stop.is_set():
            write_text_whole(path, text)

    writers = [threading.Thread(target=keep_writing, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    for _ in range(200):
        if path.read_text() not in texts:
            torn.append(1)
    stop.set()
    for writer in writers:
        writer.join()
    assert torn == [] and os.listdir(tmp_path) == ["shared.json"]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("n" * 255)
    write_text_whole(path, "text")
    assert path.read_text() == "text"


def test_the_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text_whole(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_text_goes_out_as_it_is(tmp_path):
    path = tmp_path / "text.csv"
    write_text_whole(path, "Grüße\r\n世界\n")
    assert path.read_bytes() == "Grüße\r\n世界\n".encode()


def test_json_has_null_for_what_is_no_number():
    """At any depth, in tuples too; a strict reader takes it."""
    said = {"b": [1.5, math.nan, (math.inf, {"c": -math.inf})], "a": "x"}
    assert json_text(said, indent=None) == '{"b": [1.5, null, [null, {"c": null}]], "a": "x"}'
    assert json_text(said, indent=None, sort_keys=True).startswith('{"a": "x", "b"')
    assert json.loads(json_text(said)) == {"b": [1.5, None, [None, {"c": None}]], "a": "x"}


def test_why_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "none" / "r")
    for name, reason in {
        "r": None,
        "file": None,
        ".": "that is a directory",
        "none/r": f"there is no directory {tmp_path}/none",
        "link": f"there is no directory {tmp_path}/none",
        "file/r": f"{tmp_path}/file is no directory",
        "loop": "Too many levels of symbolic links",
        "n" * 300: "File name too long",
        "a\0b": "embedded null byte",
    }.items():
        assert why_not_writable(tmp_path / name) == reason
    assert why_not_writable(tmp_path / "none" / "r", makes_folder=True) is None
    assert why_not_writable(tmp_path / "file" / "r", makes_folder=True) == f"{tmp_path}/file is no directory"
    assert why_not_writable(tmp_path / "link", makes_folder=True) == f"there is no directory {tmp_path}/none"
