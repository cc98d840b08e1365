"""Scales in the cache, and what another command makes of them."""

from tests.awq_cli.conftest import CALIBRATION
from tests.awq_cli.test_quantize import quantize


def test_auto_searches_where_other_options_share_the_bits_out_anew(run, make_model, text_file, tmp_path):
    """Of a mixture, the file in the cache is found by the bits a weight alone."""
    model = make_model(tmp_path / "tiny", hidden_size=128, intermediate_size=256)
    mixed = ("--bits_per_weight", "3.7", "--calib_data", text_file, *CALIBRATION, "--solver", "rtn")
    run.result(*quantize(model, *mixed, "--output", "plain"))
    headed = run(*quantize(model, *mixed, "--lm_head", "--output", "headed"))
    assert headed.code == 0 and any("searching anew and replacing it" in note for note in headed.notes), headed.notes
    again = run(*quantize(model, *mixed, "--lm_head", "--output", "again"))
    assert again.code == 0 and any(note.startswith("note: loading AWQ scales") for note in again.notes)
    files = [run.folder / name / "model.safetensors" for name in ("headed", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
