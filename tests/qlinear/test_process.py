"""Memory of a process, as the system counts it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qlinear.process import peak_rss_bytes, trim_heap

ROOT = Path(__file__).parents[2]


def test_the_peak_grows_with_what_is_held_and_stays():
    before = peak_rss_bytes()
    held = torch.ones(2 * max(before, 50_000_000) // 4)
    grown = peak_rss_bytes()
    assert grown >= held.nbytes
    del held
    trim_heap()
    assert peak_rss_bytes() == pytest.approx(grown, rel=0.01)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="other systems count as they like")
def test_a_child_does_not_begin_with_its_parents_peak():
    """getrusage's figure does: 400 MB held before a child is started count as the child's."""
    ballast = torch.ones(100_000_000)
    code = "from qlinear.process import peak_rss_bytes; print(peak_rss_bytes())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 100e6 < ballast.nbytes
