"""What lies beside a float model's weights and goes along with them: its own code, processors, templates, licences.

A model comes from anywhere, and its checkpoint may be published: so only plain files of a modest size go along, and no
link that leads out of the model's directory.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
LICENCES = ("license*", "licence*", "notice*", "use_policy*")
# What of these the hub is asked for by name, in which it tells capitals; JSON and templates are fetched in any case.
FETCHED = ("*.py", *(spelled for name in LICENCES for spelled in (name, name.upper(), name.capitalize())))
# Files whose `auto_map` names classes in the model's own code.
MAPS = ("config.json", "tokenizer_config.json", *PROCESSORS)

MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Beside:
    """names: of the files that go along, relative to `directory`; left: those that do not, each with the reason."""

    directory: Path
    names: tuple[str, ...]
    left: tuple[str, ...]

    def copy(self, target: Path) -> None:
        """Put the files into a checkpoint, but for those that it has written itself."""
        for name in self.names:
            if not (target / name).exists():
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(self.directory / name, target / name)


def find_beside(directory: Path) -> Beside:
    """Look through a model's directory. Nothing of what is found is run or believed."""
    found, left = [], []
    for name in dict.fromkeys([*_own_code(directory), *_listed(directory)]):
        reason = _reason_to_leave(directory, name)
        if reason is None:
            found.append(name)
        else:
            left.append(f"{name} {reason}")
    return Beside(directory, tuple(found), tuple(left))


def _listed(directory: Path) -> list[str]:
    names = [path.name for path in directory.iterdir() if path.is_file()]
    licences = [name for name in names if any(fnmatch(name.lower(), pattern) for pattern in LICENCES)]
    placed = [path for pattern in (*PROCESSORS, *TEMPLATES) for path in directory.glob(pattern) if path.is_file()]
    return sorted(licences) + sorted(str(path.relative_to(directory)) for path in placed)


def _own_code(directory: Path) -> list[str]:
    """The files of the classes that an `auto_map` names, and those that they import from beside them.

    Code that it places in another repository ("org/name--module.Class") is fetched from there by transformers.
    """
    from transformers.dynamic_module_utils import get_relative_imports

    found: dict[str, None] = {}
    ahead = [f"{reference.rpartition('.')[0]}.py" for map in MAPS for reference in _references(directory / map)]
    while ahead:
        name = ahead.pop(0)
        path = directory / name
        if name in found or Path(name).name != name or not path.is_file():
            continue
        found[name] = None
        if _reason_to_leave(directory, name) is None:
            ahead += [f"{module}.py" for module in sorted(_imports(path, get_relative_imports))]
    return list(found)


def _references(path: Path) -> Iterator[str]:
    """What an `auto_map` maps to: a class, or one for each kind of tokenizer."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        mapped = described.get("auto_map", {}).values()
    except (OSError, ValueError, AttributeError, RecursionError):
        return  # there is none, or it is refused by whoever needs it
    for value in mapped:
        for reference in value if isinstance(value, list) else [value]:
            if isinstance(reference, str) and "--" not in reference:
                yield reference


def _imports(path: Path, relative_imports) -> list[str]:
    try:
        return relative_imports(path)
    except (OSError, ValueError):
        return []


def _reason_to_leave(directory: Path, name: str) -> str | None:
    real, home = (directory / name).resolve(), directory.resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # the hub's cache: every file is a link to where its content is kept
        homes.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in homes):
        return "is a link out of the model's directory"
    if real.stat().st_size > MOST_BYTES:
        return f"is larger than {MOST_BYTES >> 20} MB"
    return None
