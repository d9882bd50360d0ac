"""Timing of several ways to do one thing, interleaved so that a change of the machine affects all of them alike."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from prtool.progress import Progress, stage
from prtool.records import setting
from prtool.runtime.bench.sensors import CudaEvents

MAX_ROUNDS = 10_000
SETTLE_S = 0.03
"""Untimed rest between calls of different libraries: an OpenMP thread spins for a few milliseconds after its call, and would take a core."""
Mark = Callable[[str], None]
"""Called by a case when it has finished the stage of that name."""
Clock = Callable[[], int]
"""Nanoseconds of a clock that never goes back."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time.

    Attributes:
        run: does it once, given the number of the round, from 0, and a function to call after each stage. Cases of one group
            take the same input in the same round.
        library: what runs it; `SETTLE_S` lies between calls of different libraries.
        device_clock: also times it on its device; None where there is no such clock.
    """

    run: Callable[[int, Mark], None]
    library: str = ""
    device_clock: CudaEvents | None = None


Groups = Sequence[Sequence[Case]]
"""Groups of cases that are compared with each other; the first of each is the baseline."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How often everything is timed."""

    min_rounds: int = setting(5, "least timed rounds; a median with an interval needs 5", minimum=5, maximum=MAX_ROUNDS)
    max_rounds: int = setting(500, "most timed rounds, whatever the budget says", maximum=MAX_ROUNDS)
    warmup_rounds: int = setting(2, "rounds before the timed ones", minimum=1, maximum=MAX_ROUNDS)
    budget_s: float = setting(60.0, "seconds of timed calls; loading and warming up come on top", minimum=0.0)
    seed: int = setting(0, "of pixels, generated images and order", minimum=0, maximum=2**63 - 1)


@dataclass(slots=True)
class Samples:
    """What was measured of one case, one entry a round.

    Attributes:
        total_ns: of the whole call.
        stages_ns: stage name -> its share; a stage that a call marks twice is added up.
        joules: energy of all calls together; None where nothing counts it.
        device_ns: of the whole call by the device's clock; empty where there is none.
    """

    total_ns: list[int] = field(default_factory=list)
    stages_ns: dict[str, list[int]] = field(default_factory=dict)
    joules: float | None = None
    device_ns: list[int] = field(default_factory=list)

    def percentile_ms(self, percent: float) -> float:
        """Of the totals, in milliseconds, interpolated linearly between neighbours."""
        return float(np.percentile(np.array(self.total_ns, np.float64), percent)) / 1e6

    def stages_ms(self) -> dict[str, float]:
        """Median of each stage, in milliseconds."""
        return {name: float(np.median(values)) / 1e6 for name, values in self.stages_ns.items()}

    def device_ms(self) -> float | None:
        """Median by the device's clock, in milliseconds; None where there is none."""
        return float(np.median(self.device_ns)) / 1e6 if self.device_ns else None


class Speedup(NamedTuple):
    """Median over the rounds of baseline time / case time within the same round, and an interval that holds the true median.

    The interval has at least 95 % confidence (order statistics, no assumption on the distribution); with 5 rounds it is the least
    and greatest ratio, 93.8 %.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sensors:
    """How time passes and is read; and energy: joules since the last call, None where nothing counts them."""

    clock: Clock = time.perf_counter_ns
    joules: Callable[[], float | None] = lambda: None
    sleep: Callable[[float], None] = time.sleep


def measure(groups: Groups, plan: Plan, sensors: Sensors, progress: Progress) -> list[list[Samples]]:
    """Times every case of every group in each round.

    A round visits the groups in a shuffled order, and the cases of a group, baseline included, one directly after the
    other in a shuffled order: a baseline and what is compared with it are milliseconds to seconds apart, and none has a
    lasting place after another.

    Returns:
        For each group, the samples of its cases, in the order given; every case has the same number of rounds.
    """
    rng = np.random.default_rng(plan.seed)
    clock = sensors.clock
    stopwatch = _Stopwatch(sensors, progress)
    cases = sum(map(len, groups))
    round_s = plan.budget_s
    with stage(progress, "warming up (calls)", plan.warmup_rounds * cases):
        for number in range(plan.warmup_rounds):
            started = clock()
            stopwatch.round(groups, rng, number)
            # The fastest, because the first calls also allocate; if the estimate is high, the budget ends the timing.
            round_s = min(round_s, (clock() - started) / 1e9)
    expected = int(min(max(plan.budget_s / max(round_s, 1e-9), plan.min_rounds), plan.max_rounds))
    samples = [[Samples() for _ in group] for group in groups]
    started = clock()
    with stage(progress, "timing (calls)", expected * cases):
        for number in range(expected):
            if number >= plan.min_rounds and (clock() - started) / 1e9 >= plan.budget_s:
                break
            stopwatch.round(groups, rng, number, samples)
    return samples


def speedup(baseline: Samples, case: Samples) -> Speedup:
    """The speed-up of `case` over `baseline`, from pairs of the same round.

    A job that starts half-way through a run slows both halves of a pair, and so moves no ratio; it would move the quotient
    of two medians. Standard deviations by bootstrap, of this median against that quotient: 0.047 against 0.089 in one run,
    0.018 against 0.019 in a calmer one (ViT-B/16, batch 8, keep 0.6, 14 rounds each on 2 cores that 9 jobs shared).
    """
    ratios = np.sort(np.array(baseline.total_ns, np.float64) / np.array(case.total_ns, np.float64))
    skipped = _interval_rank(len(ratios))
    return Speedup(float(np.median(ratios)), float(ratios[skipped]), float(ratios[-1 - skipped]))


class _Stopwatch:
    """Times calls of cases, with a rest where another library ran before."""

    def __init__(self, sensors: Sensors, progress: Progress) -> None:
        self._sensors, self._progress = sensors, progress
        self._library = ""

    def round(self, groups: Groups, rng: np.random.Generator, number: int, samples: list[list[Samples]] | None = None) -> None:
        order = [(outer, inner) for outer in rng.permutation(len(groups)) for inner in rng.permutation(len(groups[outer]))]
        for outer, inner in order:
            self._time(groups[outer][inner], number, samples[outer][inner] if samples else Samples())
            self._progress.advance()

    def _time(self, case: Case, number: int, samples: Samples) -> None:
        marks: list[tuple[str, int]] = []
        clock, joules = self._sensors.clock, self._sensors.joules
        if self._library and case.library != self._library:
            self._sensors.sleep(SETTLE_S)
        self._library = case.library
        joules()
        if case.device_clock is not None:
            case.device_clock.start()
        started = clock()
        case.run(number, lambda name: marks.append((name, clock())))
        ended = clock()
        used = joules()
        if case.device_clock is not None:
            samples.device_ns.append(case.device_clock.stop())
        if used is not None:
            samples.joules = used + (samples.joules or 0.0)
        samples.total_ns.append(max(ended - started, 1))
        spent = Counter[str]()
        for name, moment in marks:
            spent[name] += moment - started
            started = moment
        for name, share in spent.items():
            samples.stages_ns.setdefault(name, []).append(share)


def _interval_rank(rounds: int) -> int:
    """How many ratios at each end lie outside the 95 % interval of the median; 0 where there are too few rounds."""
    # Exact integers: P(at most `rank` of `rounds` fair coins) <= 1/40 at each end.
    rank, tail = -1, 0
    while 40 * (tail := tail + math.comb(rounds, rank + 1)) <= 2**rounds:
        rank += 1
    return max(rank, 0)
