"""Files of scales and other places that a user names."""

import os

from tests.awq_cli.conftest import CALIBRATION
from tests.awq_cli.test_quantize import quantize


def test_a_file_that_is_none_of_scales(run, model, text_file):
    """In the cache it is as good as none; one that the user names is left alone."""
    calibration = ("--calib_data", text_file, *CALIBRATION)
    kept = run.folder / "cache" / "tiny-w4-g64.pt"
    kept.parent.mkdir()
    kept.write_bytes(b"half a file")
    outcome = run(*quantize(model, *calibration))
    said = f"note: scales file {kept} cannot be read: KeyError; searching anew and replacing it"
    assert outcome.code == 0 and said in outcome.notes
    assert f"note: loading AWQ scales from {kept}" in run(*quantize(model, *calibration, "--overwrite")).notes

    letter = run.folder / "letter.txt"
    letter.write_text("dear all")
    for awq in ("auto", "run"):
        which = ("--awq", awq, "--scales", letter, "--output", f"quantized_models/{awq}")
        assert run(*quantize(model, *calibration, *which)).error.startswith(f"scales file {letter} is refused: ")
    assert letter.read_text() == "dear all"


def test_a_name_that_is_no_unicode(run, model, text_file):
    """Of a text: what the libraries write a tokenizer or tensors into has to be Unicode."""
    name = os.fsdecode(b"caf\xe9")
    (run.folder / name).write_text(text_file.read_text())
    found = run.result(*quantize(model, "--calib_data", name, *CALIBRATION, "--output", "made"))
    assert found["calibration"]["source"] == name
    assert "caf\\udce9" in (run.folder / "made" / "README.md").read_text(encoding="utf-8")
    outcome = run(*quantize(model, "--awq", "none", "--output", f"{name}-made"))
    assert "surrogates not allowed" in outcome.error and not (run.folder / f"{name}-made").exists()


def test_a_home_that_the_shell_leaves_as_it_is(run, model, text_file, monkeypatch):
    monkeypatch.setenv("HOME", str(run.folder / "home"))
    (run.folder / "home").mkdir()
    text = "~/text.txt"
    (run.folder / "home" / "text.txt").write_text(text_file.read_text())
    found = run.result(*quantize(model, "--calib_data", text, *CALIBRATION, "--scales=~/s.pt", "--output=~/made"))
    assert found["checkpoint"] == str(run.folder / "home" / "made") and found["scales"] == str(
        run.folder / "home" / "s.pt"
    )
    assert run("--task", "decode", "--checkpoint=~/made", "--prompt", "the", "--max_new_tokens", "2").code == 0
    assert not list(run.folder.glob("~*"))
