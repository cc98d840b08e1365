"""`python -m tests.fuzz`: for as long as one likes, every reader in turn, and quantizing stopped at any moment.

What a reader ends in that is neither taken nor refused in one line is kept as a case in tests/fuzz/cases, which the
suite runs ever after. Results are kept; `--docs` puts them into docs/reliability.md, also those of earlier runs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.readers import READERS
from tests.fuzz.record import Result, remember, results, write_page
from tests.fuzz.run import Tally, quiet, run
from tests.fuzz.stops import STOPS, Stage, mounts, prepared, stopped

CASES = Path(__file__).parent / "cases"
BATCH = 50
TOLD = "fuzz: "  # what a worker tells, among what libraries print


def fuzz(name: str, seconds: float, first: int) -> Tally:
    """Seeds from `first` up, some at a time in a process of their own: what kills it, kills nothing else."""
    whole, end, seed = Tally(), time.monotonic() + seconds, first
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            command = [sys.executable, "-m", "tests.fuzz", "--worker", name, folder, str(seed), str(seed + BATCH)]
            done = subprocess.run(command, capture_output=True, text=True)
            told = (line.removeprefix(TOLD) for line in done.stdout.splitlines() if line.startswith(TOLD))
            for number, kind in map(str.split, told):
                whole.counts[kind] += 1
                seed = int(number) + 1
                if kind == "fault":
                    _keep(name, int(number), Path(folder))
                    whole.faults[int(number)] = kind
                    print(done.stderr[-2000:], flush=True)
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
        print(f"\n{TOLD}{seed}", *tally.counts, flush=True)


def _keep(name: str, seed: int, folder: Path) -> None:
    case = CASES / name / str(seed)
    case.parent.mkdir(parents=True, exist_ok=True)
    kept = folder / f"fault {seed}"
    case.write_bytes((kept if kept.exists() else folder / "last").read_bytes())
    print(f"{name}: seed {seed} is neither taken nor refused; kept in {case}", flush=True)


def stop(stage: Stage, kind: str, seeds: range) -> Counter:
    """Quantizing stopped once a seed; what must not be is told and counted."""
    ends: Counter = Counter()
    for seed in seeds:
        try:
            ends[stopped(stage, kind, seed)] += 1
        except (AssertionError, subprocess.TimeoutExpired) as fault:
            ends["fault"] += 1
            print(f"{kind}: seed {seed}: {fault}", flush=True)
    return ends


def rounds(chosen: argparse.Namespace, stage: Stage | None) -> Iterator[Result]:
    """Each reader and each way to be stopped that was asked for, one after the other."""
    for name in (*READERS, *STOPS):
        if chosen.names and name not in chosen.names:
            continue
        began = time.monotonic()
        if name in READERS and chosen.seconds > 0:
            ends = fuzz(name, chosen.seconds, chosen.seed).counts
        elif name in STOPS and stage and (name != "disk full" or mounts()):
            ends = stop(stage, name, range(chosen.seed, chosen.seed + chosen.stops))
        else:
            continue
        yield Result.now(name, ends, time.monotonic() - began, chosen.seed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join((*READERS, *STOPS))}; all if none is named")
    parser.add_argument("--seconds", type=float, default=60, help="for each reader")
    parser.add_argument("--stops", type=int, default=50, help="moments at which quantizing is stopped, of each kind")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first; the clock's if none is given")
    parser.add_argument("--record", type=Path, default=Path("build/fuzz.json"), help="where results are kept")
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write what the record has into docs/reliability.md; with --seconds 0 --stops 0, nothing else",
    )
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        name, folder, first, last = chosen.worker
        return work(name, Path(folder), int(first), int(last))
    if unknown := set(chosen.names) - {*READERS, *STOPS}:
        parser.error(f"no reader and no way to be stopped: {', '.join(sorted(unknown))}")
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        quiet()
        stops = chosen.stops and (not chosen.names or set(chosen.names) & set(STOPS))
        for result in rounds(chosen, prepared(Path(folder)) if stops else None):
            print(result, flush=True)
            remember(chosen.record, result)
            faults += result.ends.get("fault", 0)
    if chosen.docs:
        write_page(results(chosen.record))
    raise SystemExit(faults > 0)


if __name__ == "__main__":
    main()
