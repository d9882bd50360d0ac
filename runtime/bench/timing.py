"""Timing of several ways to do one thing, interleaved so that a change of the machine affects all of them alike."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from prtool.progress import Progress, stage
from prtool.runtime.bench.sensors import CudaEvents

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
        library: what runs it; `Plan.settle_s` lies between calls of different libraries.
        device_clock: also times it on its device; None where there is no such clock.
    """

    run: Callable[[int, Mark], None]
    library: str = ""
    device_clock: CudaEvents | None = None


Groups = Sequence[Sequence[Case]]
"""Groups of cases that are compared with each other; the first of each is the baseline."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How often everything is timed.

    Attributes:
        min_rounds, max_rounds: least and most timed rounds.
        warmup_rounds: rounds before them that are not counted, at least 1.
        budget_s: seconds after which no further round starts, once there are `min_rounds`.
        seed: of the order within each round.
        settle_s: seconds of untimed rest between calls of different libraries, whose idle threads may spin for some
            milliseconds after a call and would take the cores from the next one.
    """

    min_rounds: int
    max_rounds: int
    warmup_rounds: int
    budget_s: float
    seed: int
    settle_s: float = 0.0


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


@dataclass(frozen=True, slots=True)
class Speedup:
    """Median over the rounds of baseline time / case time within the same round.

    Attributes:
        median: the speed-up.
        low, high: an interval that holds the true median with at least 95 % confidence (order statistics, no
            assumption on the distribution); with 5 rounds the least and greatest ratio, 93.8 %.
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
    stopwatch = _Stopwatch(sensors, plan.settle_s)
    cases = sum(map(len, groups))
    round_s = plan.budget_s
    with stage(progress, "warming up (calls)", plan.warmup_rounds * cases):
        for number in range(plan.warmup_rounds):
            started = clock()
            stopwatch.round(groups, rng, _nothing(groups), number, progress)
            # The fastest, because the first calls also allocate; if the estimate is high, the budget ends the timing.
            round_s = min(round_s, (clock() - started) / 1e9)
    expected = int(min(max(plan.budget_s / max(round_s, 1e-9), plan.min_rounds), plan.max_rounds))
    samples = _nothing(groups)
    started = clock()
    with stage(progress, "timing (calls)", expected * cases):
        for number in range(expected):
            if number >= plan.min_rounds and (clock() - started) / 1e9 >= plan.budget_s:
                break
            stopwatch.round(groups, rng, samples, number, progress)
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

    def __init__(self, sensors: Sensors, settle_s: float) -> None:
        self._sensors = sensors
        self._settle_s = settle_s
        self._library = ""

    def round(self, groups: Groups, rng: np.random.Generator, samples: list[list[Samples]], number: int, progress: Progress) -> None:
        order = [(outer, inner) for outer in rng.permutation(len(groups)) for inner in rng.permutation(len(groups[outer]))]
        for outer, inner in order:
            self._time(groups[outer][inner], number, samples[outer][inner])
            progress.advance()

    def _time(self, case: Case, number: int, samples: Samples) -> None:
        marks: list[tuple[str, int]] = []
        clock, joules = self._sensors.clock, self._sensors.joules
        if self._library and case.library != self._library and self._settle_s > 0.0:
            self._sensors.sleep(self._settle_s)
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
        for name, spent in _stages(marks, started).items():
            samples.stages_ns.setdefault(name, []).append(spent)


def _stages(marks: Iterable[tuple[str, int]], started: int) -> dict[str, int]:
    spent: dict[str, int] = {}
    for name, moment in marks:
        spent[name] = spent.get(name, 0) + moment - started
        started = moment
    return spent


def _nothing(groups: Groups) -> list[list[Samples]]:
    return [[Samples() for _ in group] for group in groups]


def _interval_rank(rounds: int) -> int:
    """How many ratios at each end lie outside the 95 % interval of the median; 0 where there are too few rounds."""
    # Exact integers: P(at most `rank` of `rounds` fair coins) <= 1/40 at each end.
    rank, tail = -1, 0
    while 40 * (tail := tail + math.comb(rounds, rank + 1)) <= 2**rounds:
        rank += 1
    return max(rank, 0)
