"""A checkpoint put on the hub: a stand-in of it says what arrived."""

import pytest
from huggingface_hub import constants

from checkpoints.push import check_repository, push
from qlinear.errors import CheckpointError, OptionError
from tests.checkpoints.hub import standing_in


@pytest.fixture
def hub(monkeypatch):
    with standing_in("hf_secret") as standing:
        monkeypatch.setattr(constants, "ENDPOINT", standing.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield standing


@pytest.fixture
def directory(tmp_path):
    for name, content in {
        "README.md": b"# hello",
        "config.json": b"{}",
        "model.safetensors": bytes(range(200)),
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden").write_text("not for others")
    return tmp_path


def test_every_file_arrives_in_one_commit(hub, directory):
    assert push(directory, "org/name") == f"{hub.address}/org/name"
    assert hub.files == {path.name: path.read_bytes() for path in directory.iterdir() if path.name != ".hidden"}
    (made,) = hub.made
    assert (made["name"], made["organization"], made["visibility"]) == ("name", "org", "private")
    assert hub.summary == "Upload a checkpoint made with run_awq"


def test_a_token_that_may_not_write(hub, directory, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(
        CheckpointError, match=r"could not be pushed to org/name: .*401.*; HF_TOKEN or `hf auth"
    ) as error:
        push(directory, "org/name")
    assert "\n" not in str(error.value) and hub.files == {}


@pytest.mark.parametrize("name", ["name", "a/b/c", "../x", "org/", "/name", "org/na me", "x" * 200 + "/y"])
def test_what_is_no_name_of_a_repository(name):
    with pytest.raises(OptionError, match="is no name of a repository; it has to be ORGANISATION/NAME$"):
        check_repository(name)
