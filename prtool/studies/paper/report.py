"""A finished table: our figures next to the published ones, as Markdown, CSV, JSON and PNG, and what differs."""

import csv
import io
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prtool.files import PICTURE, check_output, file_kind, write_bytes, write_json
from prtool.pictures import picture
from prtool.studies.paper.plan import Study, Table
from prtool.studies.paper.published import claims_of, published
from prtool.studies.paper.sets import absent
from prtool.trainer.config import TrainConfig
from prtool.trainer.evaluation.report import UNPRUNED
from prtool.trainer.settings import PATCH_RANKING_TOKENS

if TYPE_CHECKING:
    from prtool.studies.paper.run import Grid

MEAN = "mean"
_BEGINNINGS = {".md": rb"# [^\n]*\n\nOurs \(published", ".csv": rb"row,column,ours,deviation,", ".json": rb'\{\n "table"'}
_REPORT = file_kind("a report of 'prtool reproduce'", {suffix: re.compile(text) for suffix, text in _BEGINNINGS.items()})


@dataclass(frozen=True, slots=True)
class Entry:
    """One row and column.

    Attributes:
        row, column: where it stands.
        ours: the mean over the seeds.
        deviation: their standard deviation; None for one seed.
        seeds: how many.
        published: the paper's figure; None where it has none.
        same_task: the data has the paper's classes, so that a difference means something.
    """

    row: str
    column: str
    ours: float
    deviation: float | None
    seeds: int
    published: float | None
    same_task: bool = True

    @property
    def difference(self) -> float | None:
        """ours - published; None where there is nothing to compare."""
        return self.ours - self.published if self.published is not None and self.same_task else None


@dataclass(frozen=True, slots=True)
class Report:
    """The result of `reproduce`.

    Attributes:
        name, title: of the table.
        entries: every figure, rows and columns in the table's order, the mean over the sets last where all of a row are there.
        differs: what a reader of the two figures has to know.
        missing: cells that could not run, with their reasons.
    """

    name: str
    title: str
    entries: tuple[Entry, ...]
    differs: tuple[str, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = ("row", "column", "ours", "deviation", "seeds", "published", "difference")
        results = [{name: getattr(entry, name) for name in names} for entry in self.entries]
        return {"table": self.name, "title": self.title, "results": results, "differs": list(self.differs), "missing": list(self.missing)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names, and rows of text: ours (published), with * where the data has other classes than the paper's."""
        columns = list(dict.fromkeys(entry.column for entry in self.entries))
        cells = {(entry.row, entry.column): _text(entry) for entry in self.entries}
        rows = list(dict.fromkeys(entry.row for entry in self.entries))
        return ["", *columns], [[row, *(cells.get((row, column), "-") for column in columns)] for row in rows]


def make_report(table: Table, found: "Grid", study: Study) -> Report:
    """Averages the values over seeds, and puts them next to the published ones."""
    paper = {(cell.row, cell.column): cell.published for cell in table.cells}
    same = {data.column: data.is_whole for data in study.sets}
    entries = [_entry(row, column, values, paper.get((row, column)), same[column]) for (row, column), values in found.values.items()]
    rows, columns = list(dict.fromkeys(cell.row for cell in table.cells)), list(dict.fromkeys(cell.column for cell in table.cells))
    by_place = {(entry.row, entry.column): entry for entry in entries}
    ordered = [by_place[row, column] for row in rows for column in columns if (row, column) in by_place]
    return Report(
        table.name,
        table.title,
        (*ordered, *_means(rows, columns, by_place)),
        (*table.differs, *_differs(table, study), *_claims(table, study, found), *_budget(found)),
        tuple(found.missing),
    )


def report_files(name: str, folder: Path) -> tuple[Path, ...]:
    """The files of a table's report: NAME.md, .csv, .json and .png. Ask before the work.

    Raises:
        ConfigError: something else than an earlier report stands at one of them.
        StorageError: one cannot be written.
    """
    files = tuple(folder / f"{name}{suffix}" for suffix in (".md", ".csv", ".json", ".png"))
    for file in files:
        check_output(file, PICTURE if file.suffix == ".png" else _REPORT)
    return files


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Writes NAME.md, .csv, .json and .png; returns the files.

    Raises:
        ConfigError, StorageError: as `report_files`.
    """
    files = report_files(report.name, folder)
    write_bytes(files[0], markdown(report).encode())
    write_bytes(files[1], _csv(report).encode())
    write_json(files[2], report.to_json())
    _plot(report, files[3])
    return files


def markdown(report: Report) -> str:
    """The report as a Markdown page."""
    columns, rows = report.table()
    lines = [
        f"# {report.title}",
        "",
        "Ours (published in brackets; * for other classes than the paper's).",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "## What differs", "", *(f"- {line}" for line in report.differs)]
    if report.missing:
        lines += ["", "## What did not run", "", *(f"- {line}" for line in report.missing)]
    return "\n".join([*lines, "", f"![{report.title}]({report.name}.png)", ""])


def _entry(row: str, column: str, values: Sequence[float], paper: float | None, same_task: bool) -> Entry:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Entry(row, column, statistics.fmean(values), deviation, len(values), paper, same_task)


def _means(rows: Sequence[str], columns: Sequence[str], entries: dict[tuple[str, str], Entry]) -> list[Entry]:
    found = []
    for row in rows:
        present = [entries[row, column] for column in columns if (row, column) in entries]
        if len(columns) > 1 and len(present) == len(columns):
            papers = [entry.published for entry in present if entry.published is not None]
            mean = statistics.fmean(papers) if len(papers) == len(columns) else None
            seeds, same_task = min(entry.seeds for entry in present), all(entry.same_task for entry in present)
            found.append(Entry(row, MEAN, statistics.fmean(entry.ours for entry in present), None, seeds, mean, same_task))
    return found


def _differs(table: Table, study: Study) -> list[str]:
    lines = [f"model: ours {study.model} {study.pretrained}".rstrip() + f", the paper's {published()['model']}"]
    for data in study.sets:
        if data.known is None:
            lines.append(f"{data.name}: not a data set of the paper; {data.test} test images of {data.classes} classes")
            continue
        other = "" if data.is_whole else ": another task, so its figures (*) are not comparable"
        lines.append(
            f"{data.column}: from {data.name}, {data.test} test images of {data.classes} classes; "
            f"the paper's test part has {data.known.test} images of {data.known.classes} classes{other}"
        )
    if study.images:
        lines.append(f"at most {study.images} test images a set were evaluated")
    config = TrainConfig.load(None, dict(study.settings))
    tuned = f"tuned at keep {config.tokens.keep}, {config.tokens.visual} visual and {config.tokens.text} text"
    lines.append(f"tokens, where tuned: {study.shots or 'all'} images a class, {tuned}; the paper's 16 a class")
    lines.append(f"predictor data: {config.train_images or 'all'} training images of each set; one predictor for all sets learns from them together")
    lines.append(f"{study.seeds} seed{'s' if study.seeds > 1 else ''}; methods without chance run once")
    lines.append("the predictor is distilled unless objective = 'ranking' was set; the paper's learns a golden ranking (--set objective=ranking)")
    note = published().get(table.name, {}).get("note")
    return [*lines, f"published: {note}"] if note else lines


def _claims(table: Table, study: Study, found: "Grid") -> list[str]:
    """The paper's claims, those for tuned tokens only next to tuned figures, and its data sets that are not there."""
    lines = [f"the paper claims: {claim}" for claim in claims_of(table.name, tuned=PATCH_RANKING_TOKENS in found.gmacs)]
    missing = absent(study.sets, table.name)
    return [*lines, f"not there: {', '.join(missing)}"] if missing else lines


def _budget(found: "Grid") -> list[str]:
    """What the methods cost, and the unpruned encoder."""
    whole = found.gmacs.get(UNPRUNED)
    methods = [f"{name} {_range(costs)}" for name, costs in found.gmacs.items() if name != UNPRUNED]
    if whole is None or not methods:
        return []
    return [
        f"budget in GMAC an image: {', '.join(methods)}; unpruned {_range(whole)}; the paper's budget of 16.8 GFLOPs is undefined and was not matched"
    ]


def _range(costs: tuple[float, float]) -> str:
    least, most = (f"{value:.4g}" for value in costs)
    return least if least == most else f"{least} to {most}"


def _text(entry: Entry) -> str:
    ours = f"{entry.ours:.1f}" if entry.deviation is None else f"{entry.ours:.1f} ± {entry.deviation:.1f}"
    return ours if entry.published is None else f"{ours} ({entry.published:.1f}{'' if entry.same_task else '*'})"


def _csv(report: Report) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "ours", "deviation", "seeds", "published", "difference"])
    for entry in report.entries:
        difference = "" if entry.difference is None else f"{entry.difference:.4f}"
        deviation = "" if entry.deviation is None else f"{entry.deviation:.4f}"
        paper = "" if entry.published is None else entry.published
        writer.writerow([entry.row, entry.column, f"{entry.ours:.4f}", deviation, entry.seeds, paper, difference])
    return text.getvalue()


def _plot(report: Report, path: Path) -> None:
    """Horizontal bars of each row's last column (the mean, or the only set), the paper's figure as a line."""
    last = {entry.row: entry for entry in report.entries}
    rows = list(reversed(last))
    with picture(path, 7.2, 1.2 + 0.3 * max(1, len(rows))) as figure:
        axes = figure.add_subplot()
        axes.barh(range(len(rows)), [last[row].ours for row in rows], color="#0072B2", label="ours")
        for place, row in enumerate(rows):
            paper = last[row].published
            if paper is not None:
                axes.plot([paper, paper], [place - 0.4, place + 0.4], color="#D55E00", linewidth=2)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel("percent, " + ", ".join(dict.fromkeys(last[row].column for row in rows)) + " (orange: published)")
        figure.suptitle(report.title, fontsize=9)
