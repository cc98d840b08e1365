"""What a run measured, as it is saved."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LinearRun:
    """One linear layer: seconds of a call by kernel. bits: 16 for bfloat16; bytes: of the weight, with its scales."""

    kernel: str
    bits: int
    n: int
    k: int
    m: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class ModelRun:
    """A random Llama-2-7B that writes. step: seconds of a token on the GPU; tokens_a_second: with the loop around it;
    same_again: whether the same tokens came out twice; parts: seconds of a token by kernel, each kind on its own.
    """

    name: str
    step: float
    tokens_a_second: float
    prefill_seconds: float
    weight_bytes: int
    peak_bytes: int
    same_again: bool
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class Report:
    """copy_rates: bytes a second, read and written, by bytes copied; errors: of kernels against float64, the largest
    relative one by bits; left_out: what did not run, and why.
    """

    device: str
    versions: dict[str, str]
    backend: str
    copy_rates: dict[int, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    linears: list[LinearRun] = field(default_factory=list)
    models: list[ModelRun] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def copy_rate(self) -> float:
        """The best of them: what the kernels are held against."""
        return max(self.copy_rates.values())
