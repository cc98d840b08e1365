"""What is read of /proc."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import machine

ROOT = Path(__file__).parents[2]
STATUS = "Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t   40 kB\nVmRSS:\t   30 kB\n"


def test_the_processor_is_that_of_the_first_core():
    assert machine.processor("processor\t: 0\nmodel name\t: A 9: Zip\nmodel name\t: B\n") == "A 9: Zip"
    assert machine.processor("processor\t: 0\n") == "unknown"


@pytest.mark.parametrize("field, size", [("VmRSS", 30720), ("VmHWM", 40960)])
def test_proc_counts_in_units_of_1024_bytes(field, size):
    assert machine.bytes_of(STATUS, field) == size


def in_a_child(code: str) -> int:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_peak_is_forgotten():
    code = """
from benchmarks import machine
from qlinear.process import peak_rss_bytes
held = b"x" * (100 << 20)
before = peak_rss_bytes()
del held
machine.forget_peak()
print(before - peak_rss_bytes())
"""
    assert in_a_child(code) > 90 << 20


def test_others_are_waited_for_until_their_threads_are_at_rest(monkeypatch):
    code = "import sys, time; print(flush=True); end = time.time() + float(sys.argv[1])\n"
    code += "while time.time() < end: pass\ninput()"
    for seconds, most, rests in ((0.5, 30, True), (30, 0.4, False)):
        monkeypatch.setattr(machine, "LONGEST_REST", most)
        command = [sys.executable, "-c", code, str(seconds)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            begin = time.perf_counter()
            assert machine.wait_for_rest([child.pid]) is rests
            assert time.perf_counter() - begin >= 0.4
            child.kill()
