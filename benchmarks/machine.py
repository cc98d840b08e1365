"""What Linux says of this machine and of its processes. Standard library only."""

import time
from collections.abc import Collection
from pathlib import Path

LOOK = 0.05  # seconds: a few of the ticks (10 ms) in which Linux counts a process's time
LONGEST_REST = 2.0
USER, SYSTEM = 11, 12  # among the fields of /proc/N/stat behind its name


def processor(cpuinfo: str | None = None) -> str:
    """The processor's name, from the text of /proc/cpuinfo."""
    lines = (Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo).splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def available_bytes() -> int:
    """Memory that could be had without swapping."""
    return bytes_of(Path("/proc/meminfo").read_text(), "MemAvailable")


def resident_bytes() -> int:
    """Memory that this process holds."""
    return bytes_of(Path("/proc/self/status").read_text(), "VmRSS")


def forget_peak() -> None:
    """Have `qlinear.process.peak_rss_bytes` begin again with what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def wait_for_rest(processes: Collection[int]) -> bool:
    """Wait until none of them, by their numbers, uses the processor: threads spin for a while after their work. Whether
    that came about within LONGEST_REST seconds.
    """
    end, used = time.perf_counter() + LONGEST_REST, _ticks(processes)
    while time.perf_counter() < end:
        time.sleep(LOOK)
        before, used = used, _ticks(processes)
        if used == before:
            return True
    return False


def _ticks(processes: Collection[int]) -> int:
    stats = (Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split() for number in processes)
    return sum(int(fields[USER]) + int(fields[SYSTEM]) for fields in stats)


def bytes_of(text: str, field: str) -> int:
    """A field of a file of /proc, which counts in kB."""
    values = (line.partition(":")[2] for line in text.splitlines() if line.partition(":")[0] == field)
    return int(next(values).split()[0]) * 1024
