"""Interleaved times of work on a device, through `prtool.runtime.bench.timing`: CUDA events on a GPU, the host's clock on a CPU."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from prtool.progress import Progress, SilentProgress
from prtool.runtime.bench.sensors import CudaEvents
from prtool.runtime.bench.timing import Case, Mark, Plan, Samples, Sensors, measure, speedup

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Clock:
    """How everything is timed.

    Attributes:
        device: where the work runs.
        rounds: maximum number of timed rounds; each does every piece of work once, in a shuffled order.
        seconds: after this time no further round starts, once there are 5.
        min_ms: work is repeated within one timing until it takes this long, so that the clock's own steps do not count; 0 never repeats.
        seed: of the order.
    """

    device: torch.device
    rounds: int = 25
    seconds: float = 10.0
    min_ms: float = 4.0
    seed: int = 0

    def interleaved(self, works: Mapping[str, Work], progress: Progress | None = None) -> dict[str, list[float]]:
        """Name -> milliseconds, one entry a round; a warm-up round does not count."""
        times = {name: self._repetitions(work) for name, work in works.items()}
        events = CudaEvents(torch) if self.device.type == "cuda" else None
        cases = [Case(_repeated(work, times[name]), device_clock=events) for name, work in works.items()]
        plan = Plan(min(5, self.rounds), self.rounds, 1, self.seconds, self.seed)
        (samples,) = measure([cases], plan, Sensors(), progress or SilentProgress())
        return {name: [ns / 1e6 / times[name] for ns in found.device_ns or found.total_ns] for name, found in zip(works, samples, strict=True)}

    def _repetitions(self, work: Work) -> int:
        if self.min_ms <= 0.0:
            return 1
        for _ in range(2):  # the first call may compile
            self._synchronise()
            started = time.perf_counter()
            work()
            self._synchronise()
        return max(1, round(self.min_ms / max(1e3 * (time.perf_counter() - started), 1e-3)))

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _repeated(work: Work, times: int) -> Callable[[int, Mark], None]:
    def run(_round: int, _mark: Mark) -> None:
        for _ in range(times):
            work()

    return run


def compared(baseline: list[float], case: list[float], theoretical: float | None = None) -> dict[str, Any]:
    """Median of a case, and its speed-up over the baseline by pairs of one round, also as a share of the theoretical speed-up."""
    gained = speedup(*(Samples(total_ns=[round(1e6 * value) for value in values]) for values in (baseline, case)))
    row = {"median_ms": median(case), "speedup": gained.median, "speedup_low": gained.low, "speedup_high": gained.high, "rounds": len(case)}
    return row if theoretical is None else {**row, "theoretical_speedup": theoretical, "share_of_theoretical": gained.median / theoretical}
