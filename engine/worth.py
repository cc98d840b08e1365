"""How many proposed tokens a pass is worth, from what passes take on this machine and how many tokens were right.

Costs are counted in passes over a single token. Nothing is measured apart: every figure is of a pass that was wanted.
"""

from collections import deque
from statistics import median

MOST = 7  # tokens proposed at once: with the last of the text a pass over 8 rows
SLOPE = 0.12  # guess of what another row costs where no pass has told
KEPT = 9  # measurements, of which the middle one counts
FORGOTTEN = 256  # passes after which a cost is not believed any more: the machine has changed
REFRESHED = 100  # passes with proposals after which one without is made, to know what that takes now
GAIN = 1.02  # what proposing has to be worth
MEMORY = 0.9  # what a pass still counts for, with each one after it
TOGETHER = 3  # tokens of a prompt that are read in the time of one alone
TRIED, AGAIN = 2, 16  # tokens proposed where none are worth it, and after how many passes


class Worth:
    """Of one model on one machine. kinds: of proposals (see `engine.proposals.Proposer`)."""

    def __init__(self, kinds: int):
        self._plain: deque[float] = deque(maxlen=KEPT)  # seconds
        self._usual = 0.0
        self._ratios: list[deque[tuple[int, float]]] = [deque(maxlen=KEPT) for _ in range(MOST + 2)]
        self._costs = [1.0 + SLOPE * max(0, rows - 1) for rows in range(MOST + 2)]
        self._largest = 1  # rows of a pass so far
        self._proposing: deque[float] = deque(maxlen=KEPT)  # seconds for a token
        self._of_one = 0.0
        self._hits, self._trials = [1.0] * kinds, [2.0] * kinds
        self._since = [0] * kinds  # chances of a kind that were let go
        self._passes = self._without_plain = 0

    def cost(self, proposed: int) -> float:
        """Of a pass with so many tokens proposed, and of proposing them."""
        return self._costs[1 + proposed] + proposed * self._of_one

    def took(self, proposed: int, reading: float, proposing: float) -> None:
        """What a pass took, and the proposing before it, in seconds."""
        self._passes += 1
        if proposed == 0:
            self._without_plain = 0
            self._plain.append(reading)
            self._usual = median(self._plain)
            return
        self._without_plain += 1
        rows = 1 + proposed
        self._largest = max(self._largest, rows)
        self._ratios[rows].append((self._passes, reading / self._usual))
        self._proposing.append(proposing / proposed)
        self._of_one = median(self._proposing) / self._usual
        self._costs = self._interpolated()

    def _interpolated(self) -> list[float]:
        """By rows: what was measured, lines between, and a guessed slope beyond."""
        costs, last = [1.0, 1.0], 1
        for rows in range(2, MOST + 2):
            ratios = self._ratios[rows]
            while ratios and ratios[0][0] < self._passes - FORGOTTEN:
                ratios.popleft()
            costs.append(costs[-1] + SLOPE)
            if not ratios:
                continue
            costs[rows] = median(ratio for _, ratio in ratios)
            for between in range(last + 1, rows):
                costs[between] = costs[last] + (costs[rows] - costs[last]) * (between - last) / (rows - last)
            last = rows
        return costs

    def learn(self, kind: int, proposed: int, accepted: int) -> None:
        """How many of the tokens were right: those after the first wrong one were not tried."""
        self._hits[kind] = self._hits[kind] * MEMORY + accepted
        self._trials[kind] = self._trials[kind] * MEMORY + accepted + (accepted < proposed)

    def chance(self, kind: int) -> float:
        """That a token proposed is right, if those before it were."""
        return (self._hits[kind] + 0.1) / (self._trials[kind] + 0.2)

    def catching_up(self, behind: int) -> float:
        """What it takes the proposer to read so many tokens at once."""
        return behind / TOGETHER * self._of_one

    def count(self, kind: int, most: int, credit: float, behind: int) -> int:
        """Tokens to propose, `most` at most; credit: what their pass may cost more than a plain one, if all are wrong;
        behind: tokens that the proposer would have to read first.

        Where none are worth it some are tried now and then. Costs that nobody knows are come upon in steps.
        """
        if len(self._plain) < 2 or self._without_plain >= REFRESHED:
            return 0
        chance, tokens, right, best, rate = self.chance(kind), 1.0, 1.0, 0, GAIN
        for count in range(1, min(most, MOST, 2 * self._largest) + 1):
            right *= chance
            tokens += right
            cost = self.cost(count)
            if cost - 1 <= credit and tokens > rate * cost:
                best, rate = count, tokens / cost
        self._since[kind] = 0 if best else self._since[kind] + 1
        if self._since[kind] >= AGAIN:
            self._since[kind] = 0
            tried = min(TRIED, most)
            return tried if self.cost(tried) + self.catching_up(behind) - 1 <= credit else 0
        return best
