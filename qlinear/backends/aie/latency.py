"""How long a dispatch takes, by a model of a few figures; nothing here is measured on an array.

Each figure carries its source, is printed with every modelled time, and can be replaced:
`device.latency.set(clock_hz=1.3e9)`.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from qlinear.errors import TargetError


class Figure(NamedTuple):
    """One number of the latency model and where it comes from."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class LatencyModel:
    """What a dispatch takes: `max(bytes / bandwidth, macs / rate) + dispatch_overhead`; see `counters.cost`."""

    cores: Figure
    macs_per_clock: Figure
    clock_hz: Figure
    efficiency: Figure
    read_bandwidth: Figure
    write_bandwidth: Figure
    dispatch_overhead: Figure

    @property
    def macs_per_second(self) -> float:
        return self.cores.value * self.macs_per_clock.value * self.clock_hz.value * self.efficiency.value

    def set(self, **values: float) -> "LatencyModel":
        """A model with some figures replaced; `TargetError` for a name it does not have or a value it cannot use."""
        names = [field.name for field in fields(self)]
        changed = {}
        for name, value in values.items():
            if name not in names:
                raise TargetError(f"the latency model has no parameter {name!r}; it has {', '.join(names)}")
            if not 0 <= value < float("inf") or (value == 0 and name != "dispatch_overhead"):
                raise TargetError(f"latency parameter {name} is {value:g}; it has to be positive and finite")
            changed[name] = Figure(float(value), getattr(self, name).unit, "set by the user")
        return replace(self, **changed)

    def rows(self) -> list[tuple[str, Figure]]:
        """Every parameter by name, in the order it is printed."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]
