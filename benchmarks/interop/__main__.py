"""Open checkpoints of SmolLM2 with other programs, each in an environment of its own, and compare what they write.

python -m benchmarks.interop                      # every opener: gigabytes of packages, an hour
python -m benchmarks.interop mlx-lm "vLLM on a CPU"   # these anew, the others as they were
"""

import datetime
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.interop.openers import OPENERS, Opener
from benchmarks.interop.trying import NoEnvironment, Tried, attempt, environment


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice([opener.name for opener in OPENERS]))
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/interop"), show_default=True)
def main(names: Sequence[str], folder: Path) -> None:
    from benchmarks.interop.page import OPENED, cells, verdict

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for opener in OPENERS:
        if names and opener.name not in names:
            continue
        for row in _tried(opener, folder):
            click.echo(f"{row.opener:24} {row.checkpoint:24} {verdict(row)}")
            OPENED.write(cells(row.opener, row.versions, row.checkpoint, verdict(row), row.date))


def _tried(opener: Opener, folder: Path):
    from benchmarks.interop.checkpoints import make, refer

    date = datetime.date.today().isoformat()
    try:
        python = environment(opener, folder / "environments")
    except NoEnvironment as error:
        for name in opener.opens:
            yield Tried(opener.name, name, date, False, said=f"pip: {error}")
        return
    for name in opener.opens:
        directory = make(name, folder / "checkpoints")
        yield attempt(opener, python, name, directory, refer(directory), date)


if __name__ == "__main__":
    main()
