"""The settings of `prtool tune`; without PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prtool.engines.registry import graph_precision
from prtool.errors import ConfigError
from prtool.records import check_value
from prtool.runtime.bench.config import ENCODER, BenchConfig
from prtool.spec import METHODS, Keep, PruneSpec
from prtool.studies.tune.limits import Limits
from prtool.trainer.data.images import SPLITS

GRID = tuple(Keep.ratio(value) for value in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3))
"""Keeps that are tried by default; every patch is what the unpruned model and smaller images are."""
TUNE_FOLDER, REPORT_NAME, PICTURE_NAME = "tune", "tune.json", "pareto.png"


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """The candidates, the limits, and how long to search.

    Attributes:
        limits: on quality, cost and speed; none for the default, half a point of accuracy, or without labels a mean cosine of 0.98.
        locations: candidate sets of 1-based rising locations, one number for pruning once, several for progressive pruning; merging
            begins at the first of each set. () for the run's own.
        image_sizes: sides of square images in pixels, 0 for the native size; () for the native size and up to eight smaller ones.
        methods: what shortens the sequence, of "rank", "merge" and "none" (a smaller image alone); () for all that the run and its model can do.
        keeps: ratios or counts, tried with every family that takes them.
        minutes: time limit of the search; 0 for none. A step that has begun is finished; what was not tried is in the report.
        engine, precision, batch: what the time is measured with; the batch is images a call.
        threads: CPU threads of one call; 0 takes what the machine grants this process.
        device: number of the GPU, from 0.
        budget_s: seconds of timed calls for each family.
        cache: folder of built engines; None takes the engines' own default.
        split: part of the data that quality is measured on.
        images: at most this many of it, drawn by a fixed seed; 0 takes all.
        screen_images: at most this many of it for the first look at a candidate; 0 looks at `images` at once.
    """

    limits: Limits = field(default_factory=Limits)
    locations: tuple[tuple[int, ...], ...] = ()
    image_sizes: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    keeps: tuple[Keep, ...] = GRID
    minutes: float = 20.0
    engine: str = "ort"
    precision: str = "fp32"
    batch: int = 8
    threads: int = 0
    device: int = 0
    budget_s: float = 20.0
    cache: Path | None = None
    split: str = "val"
    images: int = 500
    screen_images: int = 128

    def __post_init__(self) -> None:
        if not self.keeps:
            raise ConfigError("keeps is empty, but give at least one keep ratio (0.6) or count (118)")
        self.bench(self.keeps)
        for places in self.locations:
            if not places or places[0] < 1 or list(places) != sorted(set(places)):
                raise ConfigError(f"locations = {list(places)}, but they must be blocks from 1 on that increase, such as 4,6,8,10")
        if len(set(self.locations)) != len(self.locations):
            raise ConfigError(f"locations = {[list(places) for places in self.locations]}, but give each candidate set once")
        check_value("methods", self.methods, choices=METHODS)
        for name in ("image_sizes", "images", "screen_images", "minutes"):
            check_value(name, getattr(self, name), minimum=0)
        if len(set(self.image_sizes)) != len(self.image_sizes):
            raise ConfigError(f"image_sizes = {list(self.image_sizes)}, but give each once")
        check_value("split", self.split, choices=SPLITS)

    def check_keeps(self, own: PruneSpec) -> None:
        """Raises KeepError where a keep is no number of the run's patches, ConfigError where two are the same number."""
        PruneSpec(own.grid, own.depth, own.locations[:1] or (1,)).distinct_counts(self.keeps)

    def bench(self, keeps: Sequence[Keep]) -> BenchConfig:
        """The benchmark of one family: the encoder alone, all keeps in the same rounds.

        Raises:
            ConfigError: the engine or precision is unknown, or a value is out of range.
        """
        graph_precision(self.engine, self.precision)
        config = BenchConfig(engines=(self.engine,), precisions=(self.precision,), batches=(self.batch,), keeps=tuple(keeps), scopes=(ENCODER,))
        return replace(config, threads=self.threads, device=self.device, budget_s=self.budget_s, cache=self.cache)
