"""How fast this machine does what quantizing is made of, measured in seconds on a small piece of a block.

Each kind of work is done by the function that does it in earnest, on a linear no larger than `crop`, of random numbers.
What multiplies matrices grows with a linear otherwise than what passes over its weights, so the two are told apart: the
one is counted, and what is left of the time is the other.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import linear, silu

from qlinear.grid import Grid
from qlinear.solvers.gptq import PASSES, inverse_factor
from qlinear.solvers.rtn import rtn
from quantization.methods import GPTQ, Method
from quantization.precision import fast_float32, product_dtype
from scales.clip import blocks_behind, search_clip
from scales.search import ROUNDS, candidates, rank
from scales.statistics import InputStatistics

CROP = 1536
FEW_ROWS, ROWS, TOKENS = 64, 512, 512

# Multiplications for each weight and each input: of a Gram matrix half are counted twice; compensating looks at the
# half of the columns still to come, and each visit after it at all of them, then at that half.
JUDGE_PRODUCTS = 0.5
GPTQ_PRODUCTS = 0.5 + PASSES * 1.5


@dataclass(frozen=True)
class Rates:
    """Seconds for one piece of each kind of work.

    product: one weight times one number in a product of matrices; fast: the same in what the processor multiplies
    fastest; touch: one number in a pass over activations; gram:
    one entry of a Gram matrix and one token; factor: one cubed input of a solver; column: one input of it, however many
    rows; judge, rounding, clip, solve: one weight looked at by a search, rounded, clipped, solved, beside what products
    that takes.
    """

    product: float
    fast: float
    touch: float
    gram: float
    factor: float
    column: float
    judge: float
    rounding: float
    clip: float
    solve: float


def judged_rows(n: int, k: int) -> int:
    """Rows that a search looks at in all its rounds, of a weight `(N, K)`."""
    return sum(
        turn.candidates * (n if n <= turn.rows or n * k**2 <= turn.whole_products else turn.rows) for turn in ROUNDS
    )


def solve_products(method: Method, n: int, k: int) -> float:
    return GPTQ_PRODUCTS * n * k**2 if method.of_linear == GPTQ else 0.0


def measure(width: int, grid: Grid, method: Method, crop: int = CROP) -> Rates:
    """The rates for linears of `width` inputs, or of as many as `crop`."""
    k = max(min(width, crop) // grid.group_size, 1) * grid.group_size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, k, generator=generator)
    weight = torch.randn(ROWS, k, generator=generator) / k**0.5
    statistics = InputStatistics.empty(k)

    def round_plainly(part: torch.Tensor) -> torch.Tensor:
        return rtn(part, grid).dequantize()

    with fast_float32(), torch.no_grad():
        product = _seconds(lambda: linear(x, weight)) / (TOKENS * weight.numel())
        fast_x, fast_weight = x.to(product_dtype()), weight.to(product_dtype())
        fast = _seconds(lambda: linear(fast_x, fast_weight)) / (TOKENS * weight.numel())
        touch = _seconds(lambda: silu(x).mul_(x)) / (2 * x.numel())
        gram = _seconds(lambda: statistics.add(x)) / (TOKENS * k**2)
        statistics.complete()
        choices, pairs = candidates(statistics.mean_abs), [(weight, statistics.gram)]
        judge = _seconds(lambda: rank(choices, pairs, lambda vector: vector, round_plainly), 2)
        rounding = _seconds(lambda: round_plainly(weight)) / weight.numel()
        blocks = blocks_behind(statistics.gram, grid.group_size, torch.ones(k))
        clip = _seconds(lambda: search_clip(weight, blocks, round_plainly), 3) / weight.numel()
        factor = _seconds(lambda: inverse_factor(statistics.gram), 3) if method.of_linear == GPTQ else 0.0
        solves = [
            _seconds(lambda part=part: method.linear(part, grid, statistics.gram), 3)
            - factor
            - product * solve_products(method, len(part), k)
            for part in (weight[:FEW_ROWS], weight)
        ]
    judged = judged_rows(ROWS, k)
    judge = max(judge - product * JUDGE_PRODUCTS * judged * k**2, 0.0) / (judged * k)
    row = max(solves[1] - solves[0], 0.0) / (ROWS - FEW_ROWS)
    column = max(solves[0] - FEW_ROWS * row, 0.0)
    return Rates(product, fast, touch, gram, factor / k**3, column / k, judge, rounding, clip, row / k)


def _seconds(work: Callable[[], object], times: int = 5) -> float:
    """The least of some runs, of the time that this thread had a core: what others do meanwhile is not the work's.

    Threads that share a work each do their part, so that the time of one is what it takes with nothing else to do.
    """
    taken = []
    for _ in range(times):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return min(taken)
