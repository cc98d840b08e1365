"""Where what was found out once is kept for the next time: $AWQ_CACHE, or `.cache/run_awq` at home."""

import os
from pathlib import Path


def cache_directory() -> Path | None:
    """None in an environment without a home; it need not be there yet."""
    named = os.environ.get("AWQ_CACHE")
    try:
        return Path(named).expanduser() if named else Path.home() / ".cache" / "run_awq"
    except RuntimeError:  # a container's user may have none
        return None
