"""Which float model a checkpoint was made of, as far as its recipe says: two models may have one name."""

from dataclasses import dataclass
from pathlib import Path

from checkpoints.local import files_fingerprint
from checkpoints.recipes import read_recipe


@dataclass(frozen=True)
class Origin:
    """name: as it was given to `quantize`; fingerprint: as `checkpoints.sources` has it; files: as `checkpoints.local`
    has it; None where nobody says.
    """

    name: str | None
    fingerprint: str | None
    transformers: str | None
    files: str | None = None

    @classmethod
    def read(cls, directory: Path) -> "Origin":
        recipe = read_recipe(directory)
        name, library = recipe.get("options", {}).get("model_name"), recipe.get("versions", {}).get("transformers")
        name = name if isinstance(name, str) else None
        return cls(name, recipe.get("fingerprint"), library, recipe.get("files_fingerprint"))

    def is_of_files(self, name: str) -> bool:
        """Whether it was made of the very files that the name stands for here: nothing large is loaded to tell."""
        return self.files is not None and self.files == files_fingerprint(name)

    @property
    def is_comparable(self) -> bool:
        """Whether a fingerprint made today would be the same: what a configuration says is its library's too."""
        from importlib.metadata import version

        return self.fingerprint is not None and self.transformers == version("transformers")

    def is_named(self, name: str) -> bool:
        """Whether the model went by that name: the same text, or the same place on this machine."""
        place = _place(name)
        return self.name is not None and (self.name == name or (place is not None and _place(self.name) == place))

    def is_other(self, name: str, fingerprint: str | None) -> bool:
        """Whether it was another model than the one of that name; fingerprint: of that one, None if not at hand."""
        if fingerprint is not None and self.is_comparable:
            return fingerprint != self.fingerprint
        return not self.is_named(name)

    def __str__(self) -> str:
        content = "" if self.fingerprint is None else f" (fingerprint {self.fingerprint[:12]})"
        return f"{self.name or 'a model that its recipe does not name'}{content}"


def _place(name: str) -> Path | None:
    try:
        path = Path(name).expanduser().resolve()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None
