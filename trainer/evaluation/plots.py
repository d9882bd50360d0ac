"""The picture of an evaluation: accuracy against keep rate."""

from pathlib import Path
from typing import TYPE_CHECKING

from prtool.pictures import light_grid, picture, short_name
from prtool.trainer.evaluation.report import EvalReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The Okabe-Ito colours, which stay apart for colour-blind readers, and a marker each for print without colour.
_STYLES = {
    "patch-ranking": ("#D55E00", "o"),
    "patch-ranking-tokens": ("#CC79A7", "P"),
    "golden": ("#E69F00", "*"),
    "cls-attention": ("#0072B2", "s"),
    "evit": ("#56B4E9", "D"),
    "avit": ("#009E73", "^"),
    "tome": ("#000000", "X"),
    "random": ("#777777", "v"),
}
_OTHERS = (("#8C564B", "<"), ("#17BECF", ">"), ("#7F7F00", "h"))

_REMARKS = {("golden", None): " (oracle)", ("patch-ranking", False): " (untrained)"}


def plot_accuracy(report: EvalReport, path: Path) -> None:
    """Writes a PNG of accuracy against keep rate: one line a method, the unpruned encoder dashed, GMACs on top.

    Raises:
        ConfigError: something else than a picture that prtool drew stands at `path`.
        StorageError: the file cannot be written.
    """
    with picture(path, 7.2, 4.8) as figure:
        axes = figure.add_subplot()
        _draw_lines(axes, report)
        _draw_costs(axes, report)
        figure.suptitle(f"{short_name(report.model)} on {short_name(report.data)} ({report.split}, {report.unpruned.images} images)", fontsize=12)


def _draw_lines(axes: "Axes", report: EvalReport) -> None:
    full = report.unpruned.accuracy
    axes.axhline(full, color="black", linestyle="--", linewidth=1.2, label=f"unpruned ({full:.1f} %)", zorder=1)
    spare = iter(_OTHERS * len(report.methods))
    for method in report.methods:
        colour, marker = _STYLES.get(method) or next(spare)
        rows = sorted(report.of(method), key=lambda row: row.keep)
        size = 11 if marker == "*" else 6
        label = method + _REMARKS.get((method, report.predictor_trained), _REMARKS.get((method, None), ""))
        axes.plot([row.keep for row in rows], [row.accuracy for row in rows], color=colour, marker=marker, markersize=size, label=label)
    blocks = ", ".join(map(str, report.locations))
    where = f"on entry to block {blocks}" if len(report.locations) == 1 else f"in the end, dropped on entry to blocks {blocks}"
    axes.set_xlabel(f"patches kept {where} (share of {report.patches})")
    axes.set_ylabel("zero-shot top-1 accuracy (%)")
    light_grid(axes)
    axes.legend(frameon=False, loc="best")


def _draw_costs(axes: "Axes", report: EvalReport) -> None:
    """Marks each keep rate below, and above it the cost of the cheapest method there, which is the encoder's own."""
    costs: dict[float, float] = {}
    for row in report.rows:
        if row.method in report.methods:
            costs[row.keep] = min(row.gmacs, costs.get(row.keep, row.gmacs))
    keeps = sorted(costs)
    margin = 0.04 * (keeps[-1] - keeps[0]) or 0.05
    axes.set_xlim(keeps[0] - margin, keeps[-1] + margin)
    axes.set_xticks(keeps, [str(round(keep, 3)) for keep in keeps])
    top = axes.secondary_xaxis("top")
    top.set_xticks(keeps, [f"{costs[keep]:.3g}" for keep in keeps])
    top.set_xlabel("cost of one image (GMAC)")
    top.spines["top"].set_visible(False)
