"""A world in which quality, cost and time are formulas, and the verbs that `tune` calls follow them and a clock of their own."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from models import TinyModel, tiny_bundle

from prtool.engines.base import EngineInfo
from prtool.progress import Progress
from prtool.runtime.bench import BenchConfig
from prtool.spec import MERGE, NONE, RANK, Keep
from prtool.studies.tune.config import TuneConfig
from prtool.studies.tune.report import TuneReport
from prtool.studies.tune.run import tune
from prtool.trainer.config import TrainConfig
from prtool.trainer.evaluation.evaluate import EvalConfig
from prtool.trainer.evaluation.report import UNPRUNED, EvalReport, EvalRow
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.record import RECORD_NAME, read_record
from prtool.trainer.train import train

SIDE, PATCH, DEPTH, LOCATION = 64, 8, 6, 2
"""Of the tiny model; its smaller sizes are 56, 48, 40 and 32."""
PATCHES = (SIDE // PATCH) ** 2
UNPRUNED_MS, IMAGES = 80.0, 400
KEEPS = tuple(Keep.ratio(value) for value in (0.75, 0.5, 0.25))
_MADE: dict[TrainConfig, Checkpoint] = {}
_SHORTENED = {RANK: 0.75, MERGE: 0.4, NONE: 0.0}
_DISTANCE = {RANK: 0.12, MERGE: 0.035, NONE: 0.0}


def share(method: str, side: int, kept: float) -> float:
    """MACs as a share of the unpruned encoder's."""
    return (side / SIDE) ** 2 * (1.0 - _SHORTENED[method] * (1.0 - kept))


def distance(method: str, side: int, kept: float) -> float:
    """1 - cosine: merging changes little, ranking more, and a smaller image something in between."""
    alone, reduced = 0.07 * (1.0 - (side / SIDE) ** 2) ** 1.5, _DISTANCE[method] * (1.0 - kept) ** 2
    return 1.0 - (1.0 - alone) * (1.0 - reduced)


def drop(method: str, side: int, kept: float) -> float:
    """Points of accuracy lost: ranking loses fewer at the same distance."""
    return distance(method, side, kept) * (20.0 if method == RANK else 40.0)


@dataclass
class Script:
    """Verbs that follow the formulas and write down what they were asked.

    Attributes:
        drops: points that win over the formula, by method, side and kept patches.
        seconds: how long one call of a verb takes.
        flips: images that each of the two models has right alone, on top of the drop.
    """

    drops: dict[tuple[str, int, int], float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    flips: int = 0
    labelled: bool = True
    now: float = 0.0
    trained: list[tuple[Path, TrainConfig]] = field(default_factory=list)
    evaluated: list[tuple[Path, tuple[int, ...], int]] = field(default_factory=list)
    exported: list[Path] = field(default_factory=list)
    timed: list[tuple[Path, tuple[float, ...]]] = field(default_factory=list)
    verbs: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def work(self) -> tuple[int, int, int]:
        """How often something was evaluated, exported and timed."""
        return len(self.evaluated), len(self.exported), len(self.timed)

    def train(self, config: TrainConfig, run: Path, *_: object, **_options: object) -> Checkpoint:
        """Really, for nothing is learned; once for each setting."""
        if not (run / RECORD_NAME).exists():
            self._spend("train")
        self.trained.append((run, config))
        if config not in _MADE:
            _MADE[config] = train(config, run)
        return _MADE[config].save(run)

    def evaluate(self, run: Path, data: Path | None, config: EvalConfig, *_: object) -> EvalReport:
        """Rows by the formulas."""
        self._spend("evaluate")
        record = read_record(run)
        side, patches, method = record.image_size or SIDE, record.prune.patches, record.prune.method
        images = min(config.images or IMAGES, IMAGES)
        counts = tuple(keep.resolve(patches) for keep in config.keeps or ())
        self.evaluated.append((run, counts, images))

        def row(name: str, k: int, lost: float, gmacs: float, cosine: float) -> EvalRow:
            images_lost = round(lost * images / 100)
            right = (80.0 - 100 * images_lost / images, images_lost + self.flips, self.flips) if self.labelled else (None, None, None)
            size = SIDE if name == UNPRUNED else side
            return EvalRow(name, k / patches, right[0], images, gmacs, None, cosine, right[1], right[2], (size, size), cosine - 0.1, cosine)

        found = [row(UNPRUNED, patches, 0.0, 10.0, 1.0)]
        for k in counts:
            place = (method, side, k / patches)
            lost = self.drops.get((method, side, k), drop(*place))
            found.append(row((config.methods or ("",))[0], k, lost, 10.0 * share(*place), 1.0 - distance(*place)))
        return EvalReport(tuple(found), "tiny", "", "0" * 64, str(data), config.split, 0, record.prune.locations, patches, True, ())

    def export(self, _run: Path, out: Path, *_: object) -> None:
        """Any bundle."""
        self._spend("export")
        self.exported.append(out)
        if out.exists() or len(self.exported) == 1:
            tiny_bundle(out, TinyModel())
        else:
            shutil.copytree(self.exported[0], out)

    def bench(self, bundle: Path, config: BenchConfig, *_: object) -> Any:
        """Times by the share of the MACs; merging takes a tenth more."""
        self._spend("bench")
        run = bundle.parent / "run"
        record = read_record(run if run.exists() else bundle.parents[2])
        patches, method = record.prune.patches, record.prune.method
        counts = [Keep.of(keep).resolve(patches) for keep in config.keeps or ()]
        self.timed.append((bundle, tuple(counts)))
        ratios = [1.0 / self.time_share(method, record.image_size or SIDE, k / patches) for k in counts]
        rows = [SimpleNamespace(is_baseline=True, p50_ms=UNPRUNED_MS, device="thin air")]
        rows += [
            SimpleNamespace(is_baseline=False, k=k, speedup=ratio, speedup_low=ratio, speedup_high=ratio)
            for k, ratio in zip(counts, ratios, strict=True)
        ]
        return SimpleNamespace(rows=rows, versions={"engine": "9.9"}, notes=())

    @staticmethod
    def time_share(method: str, side: int, kept: float) -> float:
        """Time against the unpruned model's."""
        return share(method, side, kept) * (1.1 if method == MERGE else 1.0)

    def probe(self, engine: str) -> EngineInfo:
        """An engine that is there."""
        return EngineInfo(engine, "9.9", "thin air")

    def tune(self, run: Path, config: TuneConfig, data: Path | None = None, progress: Progress | None = None) -> TuneReport:
        """`tune` with these verbs and this clock."""
        with pytest.MonkeyPatch.context() as patch:
            own = {"train": self.train, "evaluate_run": self.evaluate, "export_run": self.export, "bench": self.bench, "probe": self.probe}
            for name, verb in (own | self.verbs).items():
                patch.setattr(f"prtool.studies.tune.steps.{name}", verb)
            patch.setattr("prtool.studies.tune.run.probe", self.verbs.get("probe", self.probe))
            patch.setattr("prtool.studies.tune.search.monotonic", lambda: self.now)
            return tune(run, config, data, progress)

    def _spend(self, verb: str) -> None:
        self.now += self.seconds.get(verb, 0.0)


Place = tuple[str, int, float]
"""Method, side and kept share."""


def everything(sides: Sequence[int], keeps: Sequence[Keep] = KEEPS) -> list[Place]:
    """All that could be tried, but for what changes nothing."""
    whole = [(side, (side // PATCH) ** 2) for side in sides]
    found: list[Place] = [(method, side, keep.resolve(n) / n) for method in (RANK, MERGE) for side, n in whole for keep in keeps]
    return found + [(NONE, side, 1.0) for side in sides if side < SIDE]


def fastest(places: Sequence[Place], most_lost: float, lost: Callable[..., float] = drop) -> Place:
    """By brute force: the fastest of all within a limit."""
    fit = [place for place in places if lost(*place) <= most_lost + 1e-9]
    return min(fit, key=lambda place: Script.time_share(*place), default=(UNPRUNED, SIDE, math.nan))
