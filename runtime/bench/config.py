"""What a benchmark measures, and for how long."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prtool.engines.base import BuildOptions, EngineOptions, ShapeRange
from prtool.errors import ConfigError
from prtool.runtime.bench.timing import Plan
from prtool.runtime.pipeline import MODES
from prtool.spec import Keep

ENCODER, END_TO_END = "encoder", "end-to-end"
SCOPES = (ENCODER, END_TO_END)
BASELINE_MODE = "full"
PRUNED_MODES = tuple(name for name, mode in MODES.items() if mode.prunes)
SLOWEST = "slowest"
MAX_BATCH, MAX_ROUNDS, MAX_IMAGES = 1024, 10_000, 256
SETTLE_S = 0.03
"""Rest between calls of different libraries; an OpenMP thread spins for a few milliseconds after its call."""


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What is measured: every combination, each with the unpruned model next to it.

    Attributes:
        engines: names of the engine registry.
        precisions: arithmetic; each row is compared with the unpruned model on the same engine in the same precision.
        batches: images a call, 1 to 1024.
        keeps: a ratio (0.6), a count (118) or a `Keep` each; 1.0 shows what scoring and selection cost.
        modes: of "fused", "split".
        scopes: "encoder" (from prepared pixels) and "end-to-end" (from encoded files in memory: decode, preprocess, encode).
        reference: every row is also related to the unpruned model of "ENGINE/PRECISION", or of the "slowest"; "" for neither.
        images: files or their bytes for the end-to-end rows, at most 256 of them are used; none takes generated JPEGs of 500 x 375.
        threads: CPU threads of one call; 0 takes what the machine grants this process.
        device: number of the GPU, from 0.
        streams: parts that a batch is cut into and that run side by side, on engines that have streams.
        cache: folder of built engines; None takes the engines' own default.
        build: how engines that compile ahead are built; widened to the batches that are measured.
        budget_s: seconds of timed calls; loading and warming up come on top.
        min_rounds, max_rounds: timed rounds whatever the budget says; a median with an interval needs 5.
        warmup_rounds: rounds before them that do not count.
        seed: of pixels, generated images and order.
    """

    engines: tuple[str, ...] = ("ort",)
    precisions: tuple[str, ...] = ("fp32",)
    batches: tuple[int, ...] = (1, 8)
    keeps: tuple[Keep | float | int, ...] = (1.0, 0.6)
    modes: tuple[str, ...] = ("fused",)
    scopes: tuple[str, ...] = SCOPES
    reference: str = ""
    images: tuple[str | Path | bytes, ...] | None = None
    threads: int = 0
    device: int = 0
    streams: int = 1
    cache: Path | None = None
    build: BuildOptions = field(default_factory=BuildOptions)
    budget_s: float = 60.0
    min_rounds: int = 5
    max_rounds: int = 500
    warmup_rounds: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("engines", "precisions", "batches", "keeps", "modes", "scopes"):
            _check_some(name, getattr(self, name))
        _check_some("keeps", self.chosen_keeps())
        _check_names("mode", self.modes, PRUNED_MODES, f" ({BASELINE_MODE!r} is always measured, as the baseline)")
        _check_names("scope", self.scopes, SCOPES)
        references = (SLOWEST, *(f"{engine}/{precision}" for engine in self.engines for precision in self.precisions))
        _check_names("reference", (self.reference,) if self.reference else (), references)
        if self.images is not None and not self.images:
            raise ConfigError("images = (), but the end-to-end rows need at least one; give None for generated ones")
        ranges = {
            "threads": (0, 4096),
            "device": (0, 4096),
            "streams": (1, 4096),
            "min_rounds": (5, MAX_ROUNDS),
            "warmup_rounds": (1, MAX_ROUNDS),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in ranges.items():
            _check_range(name, getattr(self, name), low, high)
        _check_range("max_rounds", self.max_rounds, self.min_rounds, MAX_ROUNDS)
        for batch in self.batches:
            _check_range("batch", batch, 1, MAX_BATCH)
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
        return Plan(self.min_rounds, self.max_rounds, self.warmup_rounds, self.budget_s, self.seed, SETTLE_S)

    def engine_options(self) -> EngineOptions:
        """The part that the engines need."""
        batch = self.build.batch
        build = replace(self.build, batch=ShapeRange(min(batch.min, *self.batches), batch.opt, max(batch.max, *self.batches)))
        return EngineOptions(threads=self.threads, device=self.device, streams=self.streams, cache=self.cache, build=build)


def _check_some(name: str, values: Sequence[object]) -> None:
    if not values:
        raise ConfigError(f"{name} = (), but a benchmark needs at least one")
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ConfigError(f"{name} names {value} twice; name each once")


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} = {value!r}, but it must be a whole number from {low} to {high}")


def _check_names(what: str, names: Sequence[str], known: Sequence[str], remark: str = "") -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{what} = {name!r}, but it must be one of {', '.join(known)}{remark}{hint}")
