"""How torch's threads wait for each other: OpenMP's environment, by what else the machine has to do."""

import os
import time
from pathlib import Path

LOAD = Path("/proc/loadavg")
LOOKS, APART = 4, 0.001  # times to look, and seconds between: what is there each time has work to do, not a moment's

# A tenth of a millisecond or two, the time of a small product. A thread that sleeps on an idle core is woken late, by a
# virtual machine above all; without end, one that spins waits for a thread that has no core to run on.
SPINS = 10_000


def for_each_other() -> dict[str, str]:
    """Variables to set before torch is loaded; measured in docs/cpu.md."""
    return {"OMP_WAIT_POLICY": "PASSIVE"} if is_busy() else {"GOMP_SPINCOUNT": str(SPINS)}


def is_busy() -> bool:
    """Whether others run that leave no core to one of this process's threads; where it cannot be known, none do."""
    try:
        others = min(_others(look) for look in range(LOOKS))
    except (OSError, ValueError, IndexError):
        return False
    usable = len(os.sched_getaffinity(0))
    return others + usable > (os.cpu_count() or usable)


def _others(look: int) -> int:
    """How many threads of the machine are running or ready to, but for the one that asks."""
    if look:
        time.sleep(APART)
    running, _, _ = LOAD.read_text().split()[3].partition("/")
    return int(running) - 1
