"""TuneReport: all measured candidates, the Pareto front and the chosen one, as values, JSON, a table and a picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prtool.pictures import light_grid, picture, short_name
from prtool.spec import MERGE, NONE, RANK
from prtool.studies.tune.candidates import Candidate
from prtool.studies.tune.front import front_of, timed
from prtool.studies.tune.limits import Limits
from prtool.trainer.evaluation.report import figures as text_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA = 2
# The Okabe-Ito colours, which stay apart for colour-blind readers.
_COLOURS = {RANK: "#0072B2", MERGE: "#009E73", NONE: "#E69F00"}
_LABELS = {RANK: "ranking", MERGE: "merging", NONE: "smaller image alone"}
_CHOSEN = "#D55E00"
_COLUMNS = ("method", "px", "location", "keep", "MACs %", "ms", "images/s", "speed-up", "accuracy %", "drop", "+-", "cosine", "overlap")
_MEASURES = {
    "accuracy": "zero-shot top-1 accuracy (%)",
    "recall": "recall@1 from text to image (%)",
    "overlap": "share of the ten nearest images that stay",
    "cosine": "mean cosine to the unpruned embedding",
}


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What `tune` measured and chose.

    Attributes:
        candidates: the unpruned model first, then all others by falling MACs; one that another beats has no time, and maybe fewer images.
        choice: the best candidate; None where none is within the limits.
        limits: on quality, cost and speed.
        model: of the run.
        data, split, images: what quality was measured on.
        engine, precision, batch, device: what the time was measured with.
        versions: of the engine's library and others.
        untried: what was not tried, and why: no time was left, the encoder cannot do it, or it promised nothing.
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
    untried: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def unpruned(self) -> Candidate:
        """The model as it is."""
        return self.candidates[0]

    @property
    def front(self) -> tuple[bool, ...]:
        """For each candidate, whether it was timed and no other is as good in GMACs, latency and quality and better in one."""
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

    def figures(self, row: Candidate) -> dict[str, Any]:
        """What was measured of a candidate, as plain JSON values; None for what is unknown."""
        own = ("gmacs", "macs_share", "images_per_s", "cosine", "accuracy", "drop", "drop_error", "recall_drop")
        speed, evaluated = row.speed, row.row
        return {
            **{name: getattr(row, name) for name in own},
            "latency_ms": speed and speed.latency_ms,
            "speedup": speed and speed.ratio,
            "speedup_low": speed and speed.low,
            "speedup_high": speed and speed.high,
            "lost": evaluated.lost,
            "won": evaluated.won,
            "overlap_own": evaluated.overlap_own,
            "overlap_cross": evaluated.overlap_cross,
            "text_to_image": evaluated.text_to_image and list(evaluated.text_to_image),
            "image_to_text": evaluated.image_to_text and list(evaluated.image_to_text),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: {"schema", "results": [one object a candidate], "choice": its place or None, ...}."""
        rows = [
            {
                "method": row.family.method,
                "image_size": list(row.image_size),
                "locations": list(row.family.locations),
                "keep": row.keep,
                "k": row.k,
                "images": row.row.images,
                **self.figures(row),
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
            "untried": dict(self.untried),
            "notes": list(self.notes),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles with units, and one list of cells a candidate."""
        rows = zip(self.candidates, self.front, strict=True)
        return [*_COLUMNS, "images", "pareto", ""], [_cells(row, on_front, row is self.choice) for row, on_front in rows]


def plot_front(report: TuneReport, path: Path) -> None:
    """Writes a PNG: quality against the time of a call, one colour per reducer, the front joined, the chosen and the unpruned model marked.

    What each candidate on the front is stands next to it; limits are dashed lines.

    Raises:
        ConfigError: something else than a picture that prtool drew stands at `path`.
        StorageError: the file cannot be written.
    """
    with picture(path, 7.2, 4.8) as figure:
        axes = figure.add_subplot()
        _draw_candidates(axes, report)
        _draw_limits(axes, report)
        axes.set_xlabel(f"time of a call of {report.batch} images (ms), {report.engine} {report.precision}")
        axes.set_ylabel(_MEASURES[_measure(report)])
        # Space below the lowest candidate for its label.
        axes.margins(x=0.06, y=0.2)
        light_grid(axes)
        axes.legend(frameon=False, loc="best", fontsize=9)
        figure.suptitle(f"{short_name(report.model)} on {short_name(report.data)} ({report.split}, {report.images} images)", fontsize=12)


def _draw_candidates(axes: "Axes", report: TuneReport) -> None:
    for method, colour in _COLOURS.items():
        spots = [_spot(report, row) for row in timed(report.candidates) if row.family.method == method]
        if spots:
            axes.plot(*zip(*spots, strict=True), "o", color=colour, markersize=5, label=_LABELS[method])
    axes.plot(*_spot(report, report.unpruned), "s", color="black", markersize=7, label="unpruned")
    front = [row for row, kept in zip(report.candidates, report.front, strict=True) if kept]
    axes.plot(*zip(*sorted(_spot(report, row) for row in front), strict=True), "-", color="#999999", linewidth=1.0, zorder=1, label="front")
    turned: dict[str, Any] = {"fontsize": 6, "rotation": -50, "ha": "left", "va": "top", "rotation_mode": "anchor"}
    for row in front:
        keep = "" if row.is_unpruned or row.family.method == NONE else f"keep {row.keep:g}, "
        axes.annotate(f"{row.image_size[0]} px, {keep}{row.gmacs:.3g} GMAC", _spot(report, row), xytext=(2, -3), textcoords="offset points", **turned)
    if report.choice is not None:
        ring: dict[str, Any] = {"markersize": 14, "markerfacecolor": "none", "markeredgecolor": _CHOSEN, "markeredgewidth": 2}
        axes.plot(*_spot(report, report.choice), "o", label="chosen", **ring)


def _draw_limits(axes: "Axes", report: TuneReport) -> None:
    limits, unpruned = report.limits, report.unpruned
    lines: dict[str, Any] = {"color": _CHOSEN, "linestyle": "--", "linewidth": 1.0}
    longest = limits.latency_ms(report.batch)
    if longest < float("inf"):
        axes.axvline(longest, **lines)
    lowest = {
        "accuracy": None if limits.max_drop is None or unpruned.accuracy is None else unpruned.accuracy - limits.max_drop,
        "recall": None if limits.max_recall_drop is None or unpruned.recall is None else unpruned.recall - limits.max_recall_drop,
        "overlap": limits.min_overlap,
        "cosine": limits.min_cosine,
    }[_measure(report)]
    if lowest is not None:
        axes.axhline(lowest, **lines)


def _measure(report: TuneReport) -> str:
    return report.limits.measure if getattr(report.unpruned, report.limits.measure) is not None else "cosine"


def _spot(report: TuneReport, row: Candidate) -> tuple[float, float]:
    return row.speed.latency_ms if row.speed else float("nan"), report.limits.quality(row)[0]


def _cells(row: Candidate, on_front: bool, chosen: bool) -> list[str]:
    (height, width), speed = row.image_size, row.speed
    times = [f"{speed.latency_ms:.2f}", f"{row.images_per_s:.1f}", f"{speed.ratio:.2f}x"] if speed else ["-"] * 3
    return [
        row.family.method,
        str(height) if height == width else f"{height}x{width}",
        ",".join(map(str, row.family.locations)) or "-",
        f"{row.keep:g}",
        f"{100 * row.macs_share:.1f}",
        *times,
        *(text_of(value, digits=2) for value in (row.accuracy, row.drop, row.drop_error)),
        f"{row.cosine:.4f}",
        text_of(row.overlap, digits=3),
        str(row.row.images),
        "*" if on_front else "",
        "chosen" if chosen else "",
    ]
