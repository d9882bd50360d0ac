"""Times of work on a device, interleaved: CUDA events where there is CUDA, the host's clock on a CPU."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from prtool.runtime.bench.timing import Samples, speedup

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Clock:
    """How everything is timed.

    Attributes:
        device: where the work runs.
        rounds: timed rounds; each does every piece of work once, in a shuffled order.
        seconds: most time for the rounds of one group; at least 5 run.
        least_ms: work is repeated within one timing until it takes this long, so that the clock's own steps do not count.
        seed: of the order.
    """

    device: torch.device
    rounds: int = 25
    seconds: float = 10.0
    least_ms: float = 4.0
    seed: int = 0

    def time(self, work: Work, times: int = 1) -> float:
        """Milliseconds of one of `times` repetitions, from start to end on the device."""
        if self.device.type != "cuda":
            start = time.perf_counter_ns()
            for _ in range(times):
                work()
            return (time.perf_counter_ns() - start) / 1e6 / times
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / times

    def interleaved(self, works: Mapping[str, Work]) -> dict[str, list[float]]:
        """Name -> milliseconds, one a round; two rounds before them do not count."""
        times = {}
        for name, work in works.items():
            self.time(work)
            times[name] = max(1, round(self.least_ms / max(self.time(work), 1e-3)))
        found: dict[str, list[float]] = {name: [] for name in works}
        order = random.Random(self.seed)
        started = time.monotonic()
        for number in range(self.rounds):
            if number >= min(5, self.rounds) and time.monotonic() - started > self.seconds:
                break
            for name in order.sample(list(works), len(works)):
                found[name].append(self.time(works[name], times[name]))
        return found


def compared(baseline: list[float], case: list[float], bound: float | None = None) -> dict[str, Any]:
    """Median of a case, its speed-up over the baseline by pairs of one round, and that as a share of the bound."""
    as_ns = [Samples(total_ns=[round(1e6 * value) for value in values]) for values in (baseline, case)]
    gained = speedup(*as_ns)
    row = {"median_ms": median(case), "speedup": gained.median, "speedup_low": gained.low, "speedup_high": gained.high, "rounds": len(case)}
    return row if bound is None else {**row, "bound": bound, "share_of_bound": gained.median / bound}
