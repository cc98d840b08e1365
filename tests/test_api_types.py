"""Arguments of another type, or in another's place, are told in one line before anything is opened or written."""

import pytest

from run_awq import AwqError, Recipe, load, quantize


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize("m", Recipe()), "`output` has to be a name or a path, not Recipe"),
        (lambda: quantize("m", "out", {"w_bit": 4}), "`recipe` has to be a Recipe, not dict"),
        (lambda: quantize("m", "out", None), "`recipe` has to be a Recipe, not NoneType"),
        (lambda: quantize(None, "out"), "`model_name` has to be a name or a path, not NoneType"),
        (lambda: quantize("m", 7), "`output` has to be a name or a path, not int"),
        (lambda: load(None), "`source` has to be a name or a path, not NoneType"),
        (lambda: load(Recipe()), "`source` has to be a name or a path, not Recipe"),
    ],
)
def test_a_value_of_another_type(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AwqError) as error:
        call()
    assert str(error.value) == message and list(tmp_path.iterdir()) == []
