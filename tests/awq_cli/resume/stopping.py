"""What the tests of stopped runs share."""

N_BLOCKS = 3


def quantize(model, output: str, *more) -> tuple:
    return ("--task", "quantize", "--model_name", model, "--output", output, *more)


def left(run) -> list[str]:
    """The top of the folder the command runs in."""
    return sorted(path.name for path in run.folder.iterdir())


def progress(run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.folder / ".made.partial").iterdir()}
