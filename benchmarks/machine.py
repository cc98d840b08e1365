"""What Linux says of this machine and of the memory of this process. Standard library only."""

from pathlib import Path


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


def bytes_of(text: str, field: str) -> int:
    """A field of a file of /proc, which counts in kB."""
    values = (line.partition(":")[2] for line in text.splitlines() if line.partition(":")[0] == field)
    return int(next(values).split()[0]) * 1024
