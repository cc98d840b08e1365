"""What is the same for all rows of a table."""

from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.local import slug


@dataclass(frozen=True)
class Settings:
    """What the command was given; None where the program's own default holds.

    models: names or places of float models; draws: of the calibration text, for each row that reads any; dataset: for
    perplexity; web: a text for the yardstick, None: none is laid on; work: where what is done is kept; environments:
    of other programs, and patience: minutes after which one that is still making a checkpoint is ended; untimed: other
    work runs beside, so that minutes and speeds would tell of that.
    """

    models: tuple[str, ...]
    group_size: int | None
    calib_data: str
    n_samples: int
    draws: int
    eval_data: str | None
    dataset: str | None
    n_windows: int | None
    web: str | None
    passages: int | None
    limit: int | None
    threads: int | None
    work: Path
    environments: Path
    patience: int
    untimed: bool = False

    def shared(self) -> dict[str, str | None]:
        """What has to be the same for figures to stand in one table."""
        names = ("group_size", "calib_data", "n_samples", "dataset", "n_windows", "web", "passages", "limit")
        values = {name: getattr(self, name) for name in names}
        return {name: value if value is None else Path(str(value)).name for name, value in values.items()}

    def of_model(self, model: str) -> "Settings":
        """Those of one model alone, whose work lies apart."""
        return replace(self, models=(model,), work=self.work / slug(Path(model).name))

    @property
    def model(self) -> str:
        (one,) = self.models
        return one
