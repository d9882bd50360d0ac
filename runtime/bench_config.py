"""What a benchmark measures, and for how long."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prtool.errors import ConfigError
from prtool.runtime.timing import Plan
from prtool.spec import Keep

ENCODER, END_TO_END = "encoder", "end-to-end"
SCOPES = (ENCODER, END_TO_END)
BASELINE_MODE = "full"
PRUNED_MODES = ("fused", "split")
MOST_BATCH, MOST_ROUNDS, MOST_IMAGES = 1024, 10_000, 256


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What is measured; every combination, and for each the unpruned model beside it.

    Attributes:
        engine: a name of the engine registry.
        batches: images a call, 1 to 1024.
        keeps: a ratio (0.6), a count (118) or a `Keep` each; 1.0 shows what scoring and selection cost.
        modes: of "fused", "split".
        precisions: that the bundle holds; each is compared with the unpruned model at the same precision.
        scopes: "encoder" (from prepared pixels) and "end-to-end" (from encoded files in memory: decode, preprocess, encode).
        images: files or their bytes for the end-to-end rows, at most 256 of them are used; none takes generated JPEGs of 500 x 375.
        threads: CPU threads of one call; 0 takes what the machine grants this process.
        budget_s: seconds of timed calls; loading and warming up come on top.
        min_rounds, max_rounds: timed rounds whatever the budget says; 5 are the least for a median with an interval.
        warmup_rounds: rounds before them that do not count.
        seed: of pixels, generated images and order.
    """

    engine: str = "ort"
    batches: tuple[int, ...] = (1, 8)
    keeps: tuple[Keep | float | int, ...] = (1.0, 0.6)
    modes: tuple[str, ...] = ("fused",)
    precisions: tuple[str, ...] = ("fp32",)
    scopes: tuple[str, ...] = SCOPES
    images: tuple[str | Path | bytes, ...] | None = None
    threads: int = 0
    budget_s: float = 60.0
    min_rounds: int = 5
    max_rounds: int = 500
    warmup_rounds: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("batches", self.batches), ("keeps", self.keeps), ("modes", self.modes), ("precisions", self.precisions)):
            if not values:
                raise ConfigError(f"{name} = (), but a benchmark needs at least one")
        for batch in self.batches:
            _check_range("batch", batch, 1, MOST_BATCH)
        _check_names("mode", self.modes, PRUNED_MODES, f" ({BASELINE_MODE!r} is always measured, as the baseline)")
        _check_names("scope", self.scopes, SCOPES, "")
        if not self.scopes:
            raise ConfigError(f"scopes = (), but a benchmark needs at least one of {', '.join(SCOPES)}")
        self.chosen_keeps()
        if self.images is not None and not self.images:
            raise ConfigError("images = (), but the end-to-end rows need at least one; give None for generated ones")
        _check_range("threads", self.threads, 0, 4096)
        _check_range("min_rounds", self.min_rounds, 5, MOST_ROUNDS)
        _check_range("max_rounds", self.max_rounds, self.min_rounds, MOST_ROUNDS)
        _check_range("warmup_rounds", self.warmup_rounds, 1, MOST_ROUNDS)
        _check_range("seed", self.seed, 0, 2**63 - 1)
        if not (math.isfinite(self.budget_s) and self.budget_s >= 0.0):
            raise ConfigError(f"budget_s = {self.budget_s}, but it must be a number of seconds, 0 or more (0 measures {self.min_rounds} rounds)")

    def chosen_keeps(self) -> tuple[Keep, ...]:
        """The keeps as `Keep`.

        Raises:
            KeepError: one is neither a ratio nor a count in range.
        """
        return tuple(Keep.of(keep) for keep in self.keeps)

    def plan(self) -> Plan:
        """The part that the timing needs."""
        return Plan(self.min_rounds, self.max_rounds, self.warmup_rounds, self.budget_s, self.seed)


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} = {value!r}, but it must be a whole number from {low} to {high}")


def _check_names(what: str, names: Sequence[str], known: Sequence[str], remark: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{what} = {name!r}, but it must be one of {', '.join(known)}{remark}{hint}")
