"""How much work quantizing is, by the shapes of a block's linears and the recipe, and what that takes at some rates."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from architectures.anatomy import Anatomy, numbers, template
from architectures.fields import of_all_layers
from quantization import distill as distillation
from quantization import gauge
from quantization.gauge import Rates
from quantization.plan import Job
from quantization.recipe import DEFAULT_GROUP_SIZES, Awq
from quantization.sensitivity import SAMPLES
from quantization.streams import N_CONFIRM_SAMPLES
from scales.awq import CONFIRM_TOKENS, MOST_RANKED
from scales.search import N_CONFIRMED

# Of a mixture's configuration: how many experts read a token.
_ACTIVE = ("num_experts_per_tok", "moe_k", "num_experts_per_token", "moe_topk", "top_k_experts")
_READ_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Passes over what goes into a linear and comes out of it, in norms, rotations, activations and sums.
TOUCHES = 3
# Times a search rounds each weight of a block: to know the block without AWQ and with it, and each confirmed candidate.
ROUNDINGS = 3 + N_CONFIRMED + 1
# Of a block learned as a whole (`quantization.learned`), in tokens of a pass forward: there and back is three.
LEARNED_TOKENS = 3 * 100 * 1024
# Of a token that is distilled from: the float model's pass, the quantized one's there and back, and looks at the
# samples held back; of the head, which has no gradient of its own.
PASSES, HEAD_PASSES = 4.2, 3.1
# Where bits are spent by need: passes over its text, there twice and back once, and the grids that are tried.
MEASURE_PASSES, OFFERS = 3.0, 2 * len(DEFAULT_GROUP_SIZES)


@dataclass(frozen=True)
class Source:
    """Linears that read one input. shapes: `(N, K)` of each, of one K; share: of the text's tokens that they are given;

    ranked: how many of the linears on its edge the search looks at, as a share; 0 where no edge scales them.
    """

    shapes: tuple[tuple[int, int], ...]
    share: float
    ranked: float

    @property
    def width(self) -> int:
        return self.shapes[0][1]

    @property
    def weights(self) -> int:
        return sum(n * k for n, k in self.shapes)


@dataclass(frozen=True)
class Seconds:
    """What a block takes. forward: passes over the text; statistics: Gram matrices; search; solve: one part for each
    input of its linears, as those are solved by themselves; distill: its share of the fit of all scales in the end;
    measure: of finding out what each grid would cost each linear.
    """

    forward: float
    statistics: float
    search: float
    solve: tuple[float, ...]
    distill: float = 0.0
    measure: float = 0.0

    @property
    def total(self) -> float:
        return self.measure + self.forward + self.statistics + self.search + sum(self.solve) + self.distill


def sources(block: nn.Module, anatomy: Anatomy, config) -> list[Source]:
    """The inputs of a block's linears: the consumers of an edge read one, any other linear has its own.

    Where no edge is known, as before a block of an unknown family is looked at, names tell what is likely.
    """
    shapes = {name: tuple(block.get_submodule(name).weight.shape) for name in anatomy.linears}
    counts: dict[str, int] = {}
    for name in shapes:
        counts[template(name)] = counts.get(template(name), 0) + 1
    active = next((value for key in _ACTIVE if isinstance(value := of_all_layers(config, key), int)), None)

    def share(name: str) -> float:
        count = counts[template(name)]
        return min(active / count, 1.0) if numbers(name) and active else 1.0

    found, left = [], dict.fromkeys(shapes)
    for layers in [edge.layers for edge in anatomy.edges] or _likely(anatomy.linears):
        together: dict[tuple[str, ...], list[str]] = {}
        for name in (name for name in layers if name in left):
            together.setdefault(numbers(name), []).append(name)
        ranked = min(1.0, MOST_RANKED / len(layers))
        for names in together.values():
            found.append(Source(tuple(shapes[name] for name in names), share(names[0]), ranked))
            for name in names:
                del left[name]
    return found + [Source((shapes[name],), share(name), 0.0) for name in left]


def _likely(names: Sequence[str]) -> list[tuple[str, ...]]:
    """What an edge would scale together: q, k and v; gate and up, of all experts; anything else by itself."""
    together: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        role = next((role for role in _READ_TOGETHER if leaf in role), None)
        together.setdefault((template(parent), *role) if role else (name,), []).append(name)
    return [tuple(layers) for layers in together.values()]


@dataclass(frozen=True)
class Text:
    """looks: whether a search sees it; passes: over it, and how often Gram matrices are summed up on the way."""

    samples: int
    seqlen: int
    looks: bool
    passes: int
    gathered: bool

    @property
    def tokens(self) -> int:
        return self.samples * self.seqlen


def text_of(job: Job) -> Text:
    """What the recipe makes of its text, were there no scales to load."""
    recipe = job.recipe
    looks = recipe.awq in (Awq.AUTO, Awq.RUN)
    reads = recipe.method.reads_text(recipe.awq is not Awq.NONE)
    floats = recipe.method.block is not None
    passes = int(looks or reads) + int(reads) + int(floats)
    return Text(recipe.n_samples, recipe.seqlen, looks, passes, looks or reads)


def block_seconds(inputs: Sequence[Source], text: Text, job: Job, rates: Rates) -> Seconds:
    """Of one block."""
    weights = sum(source.weights for source in inputs)
    method = job.recipe.method
    active = sum(source.weights * source.share for source in inputs)
    touched = sum(sum(n + k for n, k in source.shapes) * source.share for source in inputs)
    token = active * rates.product + TOUCHES * touched * rates.touch + _attention(job, text.seqlen) * rates.product
    forward = text.tokens * text.passes * token
    if method.block:
        forward += LEARNED_TOKENS * token
    gram = sum(text.tokens * source.share * source.width**2 for source in inputs) * rates.gram
    search = _search(inputs, rates, weights) if text.looks else 0.0
    if text.looks:
        search += (2 * N_CONFIRM_SAMPLES * text.seqlen + (N_CONFIRMED + 1) * max(CONFIRM_TOKENS, text.seqlen)) * token
    solve = tuple(_solve(source, job, rates) for source in inputs)
    distill = _distill(job, token + active * (rates.fast - rates.product), rates) if job.recipe.distill else 0.0
    measured = 0.0
    if job.recipe.mixed:
        sample = SAMPLES * text.seqlen
        offer = weights * rates.rounding + sample * active * rates.fast
        head = job.source.model.get_submodule(job.plan.head).weight.numel() / len(job.plan.units)
        measured = MEASURE_PASSES * sample * (token + head * rates.product) + OFFERS * offer
    return Seconds(forward, gram if text.gathered else 0.0, search, solve, distill, measured)


def _distill(job: Job, token: float, rates: Rates) -> float:
    """A block's share. token: seconds that one takes forward through the block."""
    head = job.source.model.get_submodule(job.plan.head).weight.numel() / len(job.plan.units)
    return job.recipe.distill * distillation.TOKENS * (PASSES * token + HEAD_PASSES * head * rates.fast)


def _attention(job: Job, seqlen: int) -> float:
    """Products for each token in the attention of one block, where the configuration says how wide it is."""
    config = job.source.config.get_text_config()
    width = of_all_layers(config, "hidden_size")
    return 2.0 * seqlen * width if isinstance(width, int) else 0.0


def _search(inputs: Sequence[Source], rates: Rates, weights: int) -> float:
    seconds = weights * (ROUNDINGS * rates.rounding + rates.clip)
    for source in inputs:
        for n, k in source.shapes:
            rows = source.ranked * gauge.judged_rows(n, k)
            seconds += rows * k * (rates.judge + gauge.JUDGE_PRODUCTS * k * rates.product)
    return seconds


def _solve(source: Source, job: Job, rates: Rates) -> float:
    rows, k = sum(n for n, _ in source.shapes), source.width
    products = gauge.solve_products(job.recipe.method, rows, k) * rates.product
    return rates.factor * k**3 + rates.column * k + rows * k * rates.solve + products
