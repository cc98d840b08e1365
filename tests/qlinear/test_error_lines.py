"""What an error's message may be."""

import pickle

import pytest

from qlinear.errors import LONGEST, AwqError, CheckpointError


@pytest.mark.parametrize("letters", [0, 300, LONGEST, LONGEST + 1, 100_000])
def test_has_no_more_letters_than_a_line_is_read_for(letters):
    """However long the name is that a file gives something; where it begins and what to do next stay."""
    message = "a" * (letters // 2) + "z" * (letters - letters // 2)
    said = str(CheckpointError(message))
    if letters <= LONGEST:
        assert said == message
    else:
        assert LONGEST - 2 <= len(said) <= LONGEST and " ... " in said
        assert said.startswith("a" * 500) and said.endswith("z" * 500)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\u2028"])
def test_is_one_line(end):
    assert str(CheckpointError(f"config.json says a{end}b bits")) == "config.json says a b bits"


def test_goes_from_process_to_process():
    error = pickle.loads(pickle.dumps(CheckpointError("no room")))
    assert isinstance(error, AwqError) and str(error) == "no room"
