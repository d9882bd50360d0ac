"""The picture of an evaluation: accuracy and cosine against the share of the MACs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prtool.pictures import light_grid, picture, short_name
from prtool.trainer.evaluation.report import EvalReport, EvalRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The Okabe-Ito colours, which stay apart for colour-blind readers, and a marker each for print without colour.
STYLES = {
    "patch-ranking": ("#D55E00", "o"),
    "patch-ranking-tokens": ("#CC79A7", "P"),
    "recovered": ("#F0E442", "h"),
    "golden": ("#E69F00", "*"),
    "cls-attention": ("#0072B2", "s"),
    "evit": ("#56B4E9", "D"),
    "avit": ("#009E73", "^"),
    "tome": ("#000000", "X"),
    "merge": ("#8C564B", "<"),
    "smaller-image": ("#17BECF", ">"),
    "random": ("#777777", "v"),
}
_REMARKS = {("golden", None): " (oracle)", ("patch-ranking", False): " (untrained)"}


def plot_evaluation(report: EvalReport, path: Path) -> None:
    """Writes a PNG: one line a method against its share of the unpruned encoder's MACs, the unpruned encoder dashed.

    The first panel has the accuracy, where the images have labels; the second the mean cosine to the unpruned embeddings.

    Raises:
        ConfigError: something else than a picture that prtool drew stands at `path`.
        StorageError: the file cannot be written.
    """
    panels = [("mean cosine to the unpruned embedding", lambda row: row.cosine)]
    if report.unpruned.accuracy is not None:
        panels.insert(0, ("zero-shot top-1 accuracy (%)", lambda row: row.accuracy or 0.0))
    with picture(path, 1.2 + 5.6 * len(panels), 4.8) as figure:
        for place, (title, value) in enumerate(panels, start=1):
            _draw_lines(figure.add_subplot(1, len(panels), place), report, title, value)
        figure.axes[0].legend(frameon=False, loc="best")
        figure.suptitle(f"{short_name(report.model)} on {short_name(report.data)} ({report.split}, {report.unpruned.images} images)", fontsize=12)


def _draw_lines(axes: "Axes", report: EvalReport, title: str, value: Callable[[EvalRow], float]) -> None:
    axes.axhline(value(report.unpruned), color="black", linestyle="--", linewidth=1.2, label="unpruned", zorder=1)
    for method in report.methods:
        colour, marker = STYLES[method]
        rows = sorted(report.of(method), key=lambda row: row.gmacs)
        size = 11 if marker == "*" else 6
        label = method + _REMARKS.get((method, report.predictor_trained), _REMARKS.get((method, None), ""))
        shares = [100 * report.macs_share(row) for row in rows]
        axes.plot(shares, [value(row) for row in rows], color=colour, marker=marker, markersize=size, label=label)
    axes.set_xlabel(f"MACs of one image (% of the unpruned encoder's {report.unpruned.gmacs:.3g} G)")
    axes.set_ylabel(title)
    light_grid(axes)
