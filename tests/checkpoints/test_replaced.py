"""A checkpoint in the place of another: the name stands for one of the two, whole, at every instant."""

import pytest

from checkpoints import journal, writer
from tests.checkpoints.in_steps import Killed, contents, kill_at, run


@pytest.fixture(autouse=True)
def kept_and_on_disk(monkeypatch):
    """Every step is put on record, and the power stays on."""
    monkeypatch.setattr(journal, "WORTH", 0)
    monkeypatch.setattr(journal, "_sync", lambda path: None)


def test_killed_while_another_is_replaced(tmp_path):
    """Whenever that is, the name stands for the old checkpoint or the new one, whole."""
    (tmp_path / "one").write_text("1"), (tmp_path / "other").mkdir()
    if not writer.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("no exchange of names on this file system")
    run(tmp_path / "whole" / "q")
    expected = contents(tmp_path / "whole" / "q")
    kills, seen = 0, set()
    while True:
        folder = tmp_path / str(kills)
        run(folder / "q")
        (folder / "q" / "config.json").write_text('{"older": true}')
        older = contents(folder / "q")
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, kills)
            try:
                run(folder / "q", overwrite=True)
                break
            except Killed:
                kills += 1
        found = contents(folder / "q")
        assert found in (older, expected)
        seen.add(found == expected)
        run(folder / "q", overwrite=True)
        assert contents(folder / "q") == expected and [path.name for path in folder.iterdir()] == ["q"]
    assert seen == {True, False}
