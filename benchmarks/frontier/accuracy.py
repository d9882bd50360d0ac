"""Accuracy, changed decisions, cosine and retrieval of every row, on the whole test part of each data set."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import slug
from benchmarks.frontier.points import EVALUATED, Point
from benchmarks.frontier.recovered import evaluate_recovered
from benchmarks.reducers import Reducer, Workshop
from prtool.errors import ConfigError
from prtool.files import sha256_file
from prtool.progress import stage
from prtool.records import from_plain, to_plain
from prtool.spec import Keep
from prtool.store import Store, digest
from prtool.trainer.data.address import parse_data
from prtool.trainer.evaluation.evaluate import EvalConfig, evaluate_run
from prtool.trainer.evaluation.report import UNPRUNED, EvalReport, EvalRow
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.record import RECORD_NAME
from prtool.trainer.settings import RECOVERED

Figures = dict[str, Any]
_FIGURES = ("accuracy", "gmacs", "images", "lost", "won", "cosine", "overlap_own", "overlap_cross", "text_to_image", "image_to_text")
_SUMMED = ("images", "lost", "won")


@dataclass(frozen=True, slots=True)
class Sets:
    """The data sets: name -> address, as `--data` takes it; and how many test images of each are taken, 0 for all."""

    addresses: Mapping[str, str]
    images: int = 0

    @classmethod
    def parse(cls, text: str, images: int = 0) -> "Sets":
        """Reads several addresses with commas; a set has the name that was given, else its folder's."""
        found = parse_data(text)
        names = [address.known.name if address.known else address.path.name for address in found]
        if len(set(names)) != len(names):
            raise ConfigError(f"data = {text!r} has two sets of the same name; name folders differently")
        return cls({name: address.text() for name, address in zip(names, found, strict=True)}, images)

    def without(self, name: str) -> str:
        """All addresses but one, as `--data` takes them."""
        if name not in self.addresses or len(self.addresses) == 1:
            raise ConfigError(f"unseen = {name!r}, but it must be one of several sets: {', '.join(self.addresses)}")
        return ",".join(address for other, address in self.addresses.items() if other != name)


@dataclass(frozen=True, slots=True)
class Evaluations:
    """Evaluates runs; each method on each set is kept, so that a stopped call goes on with the next."""

    workshop: Workshop
    sets: Sets

    def rows(self, points: Sequence[Point], unseen: Sequence[str]) -> tuple[Figures, list[Figures]]:
        """The unpruned row, and one of each point; `unseen` sets are also measured with what was learned from the others."""
        found: list[Figures] = [{"sets": {}, "unseen": {}} for _ in points]
        unpruned: Figures = {"sets": {}, "unseen": {}}
        runs = {reducer: self.workshop.run(reducer) for reducer in dict.fromkeys(point.reducer for point in points)}
        # Each method by itself: another call with more methods then evaluates those alone.
        groups = list(dict.fromkeys((point.reducer, point.method) for point in points))
        with stage(self.workshop.progress, "evaluating (methods x sets)", len(groups) * len(self.sets.addresses)):
            for reducer, method in groups:
                places = [place for place, point in enumerate(points) if (point.reducer, point.method) == (reducer, method)]
                for name in self.sets.addresses:
                    report = self._report(runs[reducer], name, [points[place] for place in places])
                    unpruned["sets"][name] = _plain(report.unpruned)
                    for place in places:
                        row = row_of(report, points[place])
                        found[place]["sets"][name] = _plain(row)
                        found[place]["image_size"] = row.image_size[0]
                    self.workshop.progress.advance()
                if points[places[0]].learns:
                    self._add_unseen(reducer, [(points[place], found[place]) for place in places], unseen)
        whole = _finished(unpruned, UNPRUNED)
        return whole, [_finished(row, point.label, point, whole["gmacs"]) for row, point in zip(found, points, strict=True)]

    def _add_unseen(self, reducer: Reducer, rows: Sequence[tuple[Point, Figures]], unseen: Sequence[str]) -> None:
        for name in unseen:
            data = self.sets.without(name)
            report = self._report(self.workshop.run(reducer, data), name, [point for point, _ in rows], data)
            for point, figures in rows:
                figures["unseen"][name] = _plain(row_of(report, point))

    def _report(self, run: Path, name: str, points: Sequence[Point], data: str | None = None) -> EvalReport:
        """The evaluation of one method of a run on one set; taken from the store where it is there. `data` are the run's."""
        folder, address, method = self.workshop.folder, self.sets.addresses[name], points[0].method
        if method == RECOVERED and Checkpoint.load(run).recovery.kept is None:
            # The encoder is better without: that is what recovery gives then.
            method = EVALUATED[points[0].reducer.method]
        asked = EvalConfig(
            keeps=tuple(Keep.count(point.k) for point in points),
            methods=(method.removesuffix("+"),),
            images=self.sets.images,
            seed=self.workshop.seed,
            unpruned=folder / "unpruned",
            store=folder / "evaluations",
        )
        recovers = method.endswith("+")
        made_of = [dict(self.workshop.settings)] if recovers else []
        key = digest(sha256_file(run / RECORD_NAME), address, to_plain(replace(asked, store=None, unpruned=None)), *made_of)
        store, file = Store(folder / "evaluations", key), f"{slug(run.name, method)}-{name}-{key[:10]}.json"
        kept = store.read(file)
        if kept is None:
            if recovers:
                made = evaluate_recovered(self.workshop, method.removesuffix("+"), data, address, asked)
            else:
                made = evaluate_run(run, address, asked, self.workshop.progress)
            kept = to_plain(made)
            store.write(file, kept)
        report: EvalReport = from_plain(EvalReport, kept)
        return report


def row_of(report: EvalReport, point: Point) -> EvalRow:
    """The row at a count, of a report with one method."""
    return next(row for row in report.rows if row.method != UNPRUNED and round(row.keep * report.patches) == point.k)


def _plain(row: EvalRow) -> Figures:
    return {name: getattr(row, name) for name in _FIGURES}


def _finished(row: Figures, method: str, point: Point | None = None, full_gmacs: float = 0.0) -> Figures:
    """The row with means over the sets, each set counting alike; images, lost and won are sums."""
    gmacs = statistics.fmean(figures["gmacs"] for figures in row["sets"].values())
    facts = {
        "method": method,
        "learns": False,
        "gmacs": gmacs,
        "share": gmacs / (full_gmacs or gmacs),
        "theoretical_speedup": (full_gmacs or gmacs) / gmacs,
    }
    if point is not None:
        facts |= {"image_size": row["image_size"], "k": point.k, "target": point.target, "learns": point.learns}
    return facts | {"reducer": "" if point is None else str(point.reducer)} | mean_over(row["sets"]) | {"sets": row["sets"], "unseen": row["unseen"]}


def mean_over(sets: Mapping[str, Figures]) -> Figures:
    """Means of figures over the sets that have them; sums of counts."""
    found: Figures = {}
    for name in _FIGURES:
        values = [figures[name] for figures in sets.values() if figures[name] is not None]
        if not values:
            found[name] = None
        elif name in _SUMMED:
            found[name] = sum(values)
        elif isinstance(values[0], float | int):
            found[name] = statistics.fmean(values)
        else:
            found[name] = [statistics.fmean(column) for column in zip(*values, strict=True)]
    return found
