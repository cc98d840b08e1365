"""`python -m tests.fuzz`: for as long as one likes, every reader in turn, and quantizing stopped at any moment.

What a reader ends in that is neither taken nor refused in one line is kept as a case in tests/fuzz/cases, which the
suite runs ever after. The table at the end is that of docs/reliability.md.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.readers import READERS
from tests.fuzz.run import Tally, quiet, run
from tests.fuzz.stops import STOPS, prepared, stopped

CASES = Path(__file__).parent / "cases"
BATCH = 50


def fuzz(name: str, seconds: float, first: int) -> Tally:
    """Seeds from `first` up, some at a time in a process of their own: what kills it, kills nothing else."""
    whole, end, seed = Tally(), time.monotonic() + seconds, first
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            command = [sys.executable, "-m", "tests.fuzz", "--worker", name, folder, str(seed), str(seed + BATCH)]
            done = subprocess.run(command, capture_output=True, text=True)
            for line in done.stdout.splitlines():
                number, kind = line.split(maxsplit=1)
                whole.counts[kind] += 1
                seed = int(number) + 1
                if kind == "fault":
                    _keep(name, int(number), Path(folder))
                    whole.faults[int(number)] = kind
            if done.returncode < 0:
                whole.counts["fault"] += 1
                whole.faults[seed] = f"signal {-done.returncode}"
                _keep(name, seed, Path(folder))
                seed += 1
            elif done.returncode > 0:
                raise SystemExit(done.stderr)
    return whole


def work(name: str, folder: Path, first: int, last: int) -> None:
    """Tell what becomes of each seed as soon as it is known."""
    quiet()
    for seed in range(first, last):
        tally = run(READERS[name], folder, [seed])
        for fault in tally.faults.values():
            print(fault, file=sys.stderr)
            (folder / f"fault {seed}").write_bytes((folder / "last").read_bytes())
        print(seed, *tally.counts, flush=True)


def _keep(name: str, seed: int, folder: Path) -> None:
    case = CASES / name / str(seed)
    case.parent.mkdir(parents=True, exist_ok=True)
    kept = folder / f"fault {seed}"
    case.write_bytes((kept if kept.exists() else folder / "last").read_bytes())
    print(f"{name}: seed {seed} is neither taken nor refused; kept in {case}", flush=True)


def row(name: str, counts: Counter) -> str:
    others = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()) if kind != "fault")
    return f"| {name} | {sum(counts.values()):,} | {others} | {counts['fault']} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", help=f"of {', '.join((*READERS, *STOPS))}; all if none is named")
    parser.add_argument("--seconds", type=float, default=60, help="for each reader")
    parser.add_argument("--stops", type=int, default=50, help="moments at which quantizing is stopped, of each kind")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first; the clock's if none is given")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        name, folder, first, last = chosen.worker
        return work(name, Path(folder), int(first), int(last))
    print(f"seeds from {chosen.seed}", flush=True)
    rows = []
    for name in READERS:
        if name in chosen.readers or not chosen.readers:
            rows.append(row(name, fuzz(name, chosen.seconds, chosen.seed).counts))
            print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wanted = [kind for kind in STOPS if kind in chosen.readers or not chosen.readers]
        quiet()
        stage = prepared(Path(folder)) if wanted and chosen.stops else None
        for kind in wanted if stage else ():
            seeds = range(chosen.seed, chosen.seed + chosen.stops)
            rows.append(row(kind, Counter(stopped(stage, kind, seed) for seed in seeds)))
            print(rows[-1], flush=True)
    if any(not each.endswith("| 0 |") for each in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
