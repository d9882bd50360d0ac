"""TuneReport: all measured candidates, the Pareto front and the chosen one, as values, JSON, a table and a picture."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prtool.pictures import light_grid, picture, short_name
from prtool.studies.tune.front import Candidate, Limits, front_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA = 1
# The Okabe-Ito colours, which stay apart for colour-blind readers.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#777777")
_CHOSEN = "#D55E00"


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What `tune` measured and chose.

    Attributes:
        candidates: the unpruned model first, then each set of locations by the keeps that were given.
        choice: the best candidate; None where none is within the limits.
        limits: on quality and speed.
        model: of the run.
        data, split, images: what quality was measured on.
        engine, precision, batch, device: what the time was measured with.
        versions: of the engine's library and others.
        notes: what a reader of the figures has to know.
    """

    candidates: tuple[Candidate, ...]
    choice: Candidate | None
    limits: Limits
    model: str
    data: str
    split: str
    images: int
    engine: str
    precision: str
    batch: int
    device: str
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def unpruned(self) -> Candidate:
        """The model as it is."""
        return self.candidates[0]

    @property
    def front(self) -> tuple[bool, ...]:
        """For each candidate, whether no other is as good in GMACs, latency and quality and better in one."""
        return front_of(self.candidates, self.limits)

    def verdict(self) -> str:
        """The outcome in one sentence."""
        if self.choice is None:
            return f"no candidate is within {self.limits}"
        if not self.choice.is_unpruned:
            return f"chosen: {self.choice}: {self.choice.figures()}"
        if self.limits.on_quality:
            return f"the unpruned model is best: no candidate within {self.limits} is more than 2 % faster ({self.choice.figures()})"
        return f"the unpruned model is best: it is within {self.limits} itself, and no candidate is better ({self.choice.figures()})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: {"schema", "results": [one object a candidate], "choice": its place or None, ...}."""
        rows = [
            {
                **dataclasses.asdict(row),
                "locations": list(row.locations),
                "images_per_s": row.images_per_s,
                "pareto": on_front,
                "chosen": row is self.choice,
            }
            for row, on_front in zip(self.candidates, self.front, strict=True)
        ]
        plain = {name: getattr(self, name) for name in ("model", "data", "split", "images", "engine", "precision", "batch", "device", "versions")}
        return {
            "schema": SCHEMA,
            "results": rows,
            "choice": next((place for place, row in enumerate(self.candidates) if row is self.choice), None),
            "verdict": self.verdict(),
            "limits": self.limits.given(),
            **plain,
            "notes": list(self.notes),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles with units, and one list of cells a candidate."""
        columns = ["location", "keep", "patches", "GMAC", "ms", "images/s", "speed-up", "accuracy %", "drop", "+-", "cosine", "pareto", ""]
        return columns, [_cells(row, on_front, row is self.choice) for row, on_front in zip(self.candidates, self.front, strict=True)]


def plot_front(report: TuneReport, path: Path) -> None:
    """Writes a PNG: quality against the time of a call, one colour per set of locations, the front joined, the chosen and the unpruned model marked.

    Costs in GMACs stand next to the candidates on the front; limits are dashed lines.

    Raises:
        ConfigError: something else than a picture that prtool drew stands at `path`.
        StorageError: the file cannot be written.
    """
    with picture(path, 7.2, 4.8) as figure:
        axes = figure.add_subplot()
        _draw_candidates(axes, report)
        _draw_limits(axes, report)
        axes.set_xlabel(f"time of a call of {report.batch} images (ms), {report.engine} {report.precision}")
        axes.set_ylabel("mean cosine to the unpruned embedding" if _is_cosine(report) else "zero-shot top-1 accuracy (%)")
        # Space below the lowest candidate for its label.
        axes.margins(x=0.06, y=0.2)
        light_grid(axes)
        axes.legend(frameon=False, loc="best", fontsize=9)
        figure.suptitle(f"{short_name(report.model)} on {short_name(report.data)} ({report.split}, {report.images} images)", fontsize=12)


def _draw_candidates(axes: "Axes", report: TuneReport) -> None:
    pruned = [row for row in report.candidates if not row.is_unpruned]
    for place, locations in enumerate(dict.fromkeys(row.locations for row in pruned)):
        rows = [row for row in pruned if row.locations == locations]
        colour = _COLOURS[place % len(_COLOURS)]
        label = f"location {','.join(map(str, locations))}"
        axes.plot([row.latency_ms for row in rows], [_height(report, row) for row in rows], "o", color=colour, markersize=5, label=label)
    full = report.unpruned
    axes.plot([full.latency_ms], [_height(report, full)], "s", color="black", markersize=7, label="unpruned")
    front = sorted((row for row, kept in zip(report.candidates, report.front, strict=True) if kept), key=lambda row: row.latency_ms)
    axes.plot(
        [row.latency_ms for row in front], [_height(report, row) for row in front], "-", color="#999999", linewidth=1.0, zorder=1, label="front"
    )
    for row in front:
        spot = (row.latency_ms, _height(report, row))
        words = f"keep {row.keep:g}, {row.gmacs:.3g} GMAC"
        axes.annotate(words, spot, xytext=(2, -3), textcoords="offset points", fontsize=6, rotation=-50, ha="left", va="top", rotation_mode="anchor")
    if report.choice is not None:
        chosen = _height(report, report.choice)
        ring: dict[str, Any] = {"markersize": 14, "markerfacecolor": "none", "markeredgecolor": _CHOSEN, "markeredgewidth": 2}
        axes.plot([report.choice.latency_ms], [chosen], "o", label="chosen", **ring)


def _draw_limits(axes: "Axes", report: TuneReport) -> None:
    limits = report.limits
    if limits.max_latency_ms is not None:
        axes.axvline(limits.max_latency_ms, color=_CHOSEN, linestyle="--", linewidth=1.0)
    if limits.min_images_per_s is not None:
        axes.axvline(1e3 * report.batch / limits.min_images_per_s, color=_CHOSEN, linestyle="--", linewidth=1.0)
    if limits.max_drop is not None and report.unpruned.accuracy is not None:
        axes.axhline(report.unpruned.accuracy - limits.max_drop, color=_CHOSEN, linestyle="--", linewidth=1.0)
    if limits.min_cosine is not None and _is_cosine(report):
        axes.axhline(limits.min_cosine, color=_CHOSEN, linestyle="--", linewidth=1.0)


def _is_cosine(report: TuneReport) -> bool:
    return report.limits.by_cosine or report.unpruned.accuracy is None


def _height(report: TuneReport, row: Candidate) -> float:
    return report.limits.quality(row)[0]


def _cells(row: Candidate, on_front: bool, chosen: bool) -> list[str]:
    where = "unpruned" if row.is_unpruned else ",".join(map(str, row.locations))
    quality = ["-" if value is None else f"{value:.2f}" for value in (row.accuracy, row.drop, row.drop_error)]
    speed = [f"{row.latency_ms:.2f}", f"{row.images_per_s:.1f}", f"{row.speedup:.2f}x"]
    return [
        where,
        f"{row.keep:g}",
        str(row.k),
        f"{row.gmacs:.3f}",
        *speed,
        *quality,
        f"{row.cosine:.4f}",
        "*" if on_front else "",
        "chosen" if chosen else "",
    ]
