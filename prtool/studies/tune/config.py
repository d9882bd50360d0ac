"""The candidates and limits of `prtool tune`; without PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prtool.engines.registry import graph_precision
from prtool.errors import ConfigError
from prtool.runtime.bench.config import ENCODER, BenchConfig
from prtool.spec import Keep
from prtool.studies.tune.front import Limits
from prtool.trainer.data.images import SPLITS

GRID = tuple(Keep.ratio(value) for value in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3))
"""Keeps that are tried by default: eight, as many as a GPU's encoder keeps recordings of."""
TUNE_FOLDER, REPORT_NAME, PICTURE_NAME = "tune", "tune.json", "pareto.png"


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """The candidates and limits.

    Attributes:
        limits: on quality and speed.
        locations: candidate sets of 1-based rising locations, one set for pruning once, several numbers for progressive pruning;
            () for the run's own.
        keeps: ratios or counts, tried at every set.
        engine, precision, batch: what the time is measured with; the batch is images a call.
        threads: CPU threads of one call; 0 takes what the machine grants this process.
        device: number of the GPU, from 0.
        budget_s: seconds of timed calls for each set of locations.
        cache: folder of built engines; None takes the engines' own default.
        split: part of the data that quality is measured on.
        images: at most this many of it, drawn by a fixed seed; 0 takes all.
    """

    limits: Limits
    locations: tuple[tuple[int, ...], ...] = ()
    keeps: tuple[Keep, ...] = GRID
    engine: str = "ort"
    precision: str = "fp32"
    batch: int = 8
    threads: int = 0
    device: int = 0
    budget_s: float = 30.0
    cache: Path | None = None
    split: str = "val"
    images: int = 0

    def __post_init__(self) -> None:
        if not self.keeps:
            raise ConfigError("keeps is empty, but give at least one keep ratio (0.6) or count (118)")
        self.bench()
        for places in self.locations:
            if not places or places[0] < 1 or list(places) != sorted(set(places)):
                raise ConfigError(f"locations = {list(places)}, but they must be blocks from 1 on that increase, such as 4,6,8,10")
        if len(set(self.locations)) != len(self.locations):
            raise ConfigError(f"locations = {[list(places) for places in self.locations]}, but give each candidate set once")
        if self.split not in SPLITS:
            raise ConfigError(f"split = {self.split!r}, but it must be one of {', '.join(SPLITS)}")
        if self.images < 0:
            raise ConfigError(f"images = {self.images}, but it must be at least 0 (all)")

    def bench(self) -> BenchConfig:
        """The benchmark of one candidate set.

        Raises:
            ConfigError: the engine or precision is unknown, or a value is out of range.
        """
        config = bench_config(self.engine, self.precision, self.batch, self.keeps)
        return replace(config, threads=self.threads, device=self.device, budget_s=self.budget_s, cache=self.cache)


def bench_config(engine: str, precision: str, batch: int, keeps: Sequence[Keep]) -> BenchConfig:
    """The encoder alone, one engine, precision and batch, all keeps in the same rounds.

    Raises:
        ConfigError: the engine or precision is unknown, or a value is out of range.
    """
    graph_precision(engine, precision)
    return BenchConfig(engines=(engine,), precisions=(precision,), batches=(batch,), keeps=tuple(keeps), scopes=(ENCODER,))
