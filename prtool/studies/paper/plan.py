"""What a table of the paper is made of: runs to train, evaluations of them, and the cells that are read from those."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from prtool.errors import ConfigError
from prtool.spec import Keep
from prtool.studies.paper.published import PublishedSet
from prtool.trainer.evaluation.report import EvalReport, EvalRow
from prtool.trainer.runs.record import Record

Settings = tuple[tuple[str, object], ...]
"""Of training: dotted names and values."""
Reader = Callable[[Record, EvalReport], float | None]
"""Takes a figure from a job's result; None where the result has none."""
FILLED: Mapping[str, str] = MappingProxyType(
    {
        "data": "--data",
        "model": "--model",
        "pretrained": "--pretrained",
        "tokens.shots": "--shots",
        **dict.fromkeys(("seed", "fit.seed", "tokens.seed"), "--seeds"),
        **dict.fromkeys(("phases", "templates"), "another table"),
    }
)
"""Settings that every table fills, and the option that changes each; `--set` may not."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set that is there.

    Attributes:
        address: as `--data` takes it.
        name: its folder's name.
        known: what the paper calls it; None for a set that is not the paper's.
        classes: how many it has; 0 where nobody counted.
        test: images of its test part.
    """

    address: str
    name: str
    known: PublishedSet | None
    classes: int = 0
    test: int = 0

    @property
    def column(self) -> str:
        """Its column in a table."""
        return self.name if self.known is None else self.known.column

    @property
    def is_whole(self) -> bool:
        """Whether it has the paper's classes: with others the task is another one, and a difference of accuracies means nothing."""
        return self.known is not None and self.classes == self.known.classes


@dataclass(frozen=True, slots=True)
class Study:
    """What a table is made of, as the command's options give it.

    Attributes:
        sets: data sets that are there, at least one.
        model, pretrained: as `prtool train` takes them.
        keeps: at least one; most tables take one only.
        seeds: how many, from 0 on, at least 1.
        shots: images of each class that tokens are tuned on; 0 for all.
        images: test images at most; 0 for all.
        settings: further settings of training by dotted name.
        templates: prompts for every set; () takes each set's own.
        rows: patterns (*, ?) of the rows to make; () makes all.
    """

    sets: tuple[DataSet, ...]
    model: str
    pretrained: str = ""
    keeps: tuple[Keep, ...] = field(default_factory=lambda: (Keep.ratio(0.6),))
    seeds: int = 1
    shots: int = 16
    images: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.keeps:
            raise ConfigError("there is no keep; give at least one ratio (0.6) or count (118)")
        if not self.sets:
            raise ConfigError("there is no data set to reproduce a table on; give folders of data sets with --data")
        for name in self.settings:
            if name in FILLED:
                raise ConfigError(f"--set {name}: a table fills it itself; give {FILLED[name]} instead, or leave it out")
        if self.seeds < 1 or self.shots < 0 or self.images < 0:
            raise ConfigError(f"seeds = {self.seeds}, shots = {self.shots}, images = {self.images}, but they must be at least 1, 0 and 0")

    def runs(self) -> Iterator[tuple[DataSet, int]]:
        """Every data set with every seed."""
        return itertools.product(self.sets, range(self.seeds))

    @property
    def keep(self) -> Keep:
        """The keep of a table that has one.

        Raises:
            ConfigError: several were given.
        """
        first, *others = self.keeps
        if others:
            raise ConfigError(f"--keep {','.join(map(str, self.keeps))}: only the table main takes several keeps; give one, such as 0.6")
        return first


@dataclass(frozen=True, slots=True)
class Job:
    """One run, and one evaluation of it.

    Attributes:
        train_on: the sets that the run learns from; several give one predictor for all.
        test_on: the set that is evaluated.
        settings: of training, in addition to the study's.
        methods: names of `prtool eval --method`.
        keeps: keep ratios or counts.
        seed: of training and of random choices.
    """

    train_on: tuple[DataSet, ...]
    test_on: DataSet
    settings: Settings
    methods: tuple[str, ...]
    keeps: tuple[Keep, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of a table.

    Attributes:
        row, column: where it stands.
        job: what it is read from.
        read: takes it from the job's result.
        published: the paper's figure; None where it has none.
    """

    row: str
    column: str
    job: Job
    read: Reader
    published: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table's name and title, its cells (those of one row and column are averaged), and what differs from the paper's by its making."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    differs: tuple[str, ...] = ()


def accuracy(method: str, keep: Keep) -> Reader:
    """Reads a method's accuracy in percent at a keep that the job evaluates."""

    def read(_: Record, report: EvalReport) -> float | None:
        row = _row(report, method, keep)
        return None if row is None else row.accuracy

    return read


def cosine(method: str, keep: Keep) -> Reader:
    """Reads a method's mean cosine to the unpruned embedding, in percent, at a keep that the job evaluates."""

    def read(_: Record, report: EvalReport) -> float | None:
        row = _row(report, method, keep)
        return None if row is None else 100 * row.cosine

    return read


def _row(report: EvalReport, method: str, keep: Keep) -> EvalRow | None:
    wanted = keep.value / report.patches if keep.is_count else keep.value
    return next((row for row in report.of(method) if abs(row.keep - wanted) < 1e-9), None)


def unpruned(_: Record, report: EvalReport) -> float | None:
    """Reads the accuracy of the encoder as it is."""
    return report.unpruned.accuracy


def matching(checkpoint: Record, _: EvalReport) -> float | None:
    """Reads the matching rate nearest to @100 of 196, in percent; None where no golden ranking was made."""
    wanted = 100 * checkpoint.prune.patches / 196
    rows = checkpoint.metrics.matching
    return 100 * min(rows, key=lambda row: abs(row.m - wanted)).predictor if rows else None
