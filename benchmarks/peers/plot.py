"""The plot of the comparison: images a second against the cost of an image, one panel per scope."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.report import PeersReport, PeersRow
from prtool.pictures import light_grid, picture
from prtool.runtime.bench.plot import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"fp32": "o", "bf16": "s", "fp16": "D", "int8": "^"}


def plot_peers(report: PeersReport, path: Path) -> None:
    """Writes a PNG: one colour per encoder, one marker per precision, a line from the whole encoder to the cheapest one.

    Raises:
        StorageError: the file cannot be written.
    """
    scopes = list(dict.fromkeys(row.scope for row in report.rows))
    names = list(dict.fromkeys(_name(row) for row in report.rows))
    colours = dict(zip(names, COLOURS * len(names), strict=False))
    with picture(path, 5.2 * len(scopes), 6.2) as figure:
        panels = figure.subplots(1, len(scopes), squeeze=False)[0]
        for axes, scope in zip(panels, scopes, strict=True):
            _draw(axes, [row for row in report.rows if row.scope == scope], colours)
            axes.set_title(scope, fontsize=11)
        panels[0].set_ylabel("images/s")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=7)
        figure.suptitle(f"{report.model['name']} on {report.device}, {report.threads} threads, batch {report.batch}", fontsize=12)


def _draw(axes: "Axes", rows: Sequence[PeersRow], colours: dict[str, str]) -> None:
    for name, precision in dict.fromkeys((_name(row), row.precision) for row in rows):
        own = [row for row in rows if (_name(row), row.precision) == (name, precision)]
        best = {row.gmacs: max(item.images_per_s for item in own if item.gmacs == row.gmacs) for row in own}
        points = sorted(best.items())
        axes.plot(*zip(*points, strict=True), color=colours[name], marker=_MARKERS.get(precision, "v"), linewidth=1.2, label=f"{name} {precision}")
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("cost of one image (GMAC)")
    light_grid(axes)


def _name(row: PeersRow) -> str:
    """One name for each way to shorten on an engine, smaller images of every size together, and one for each method of PyTorch."""
    how = "none" if row.name.startswith("none@") else row.name
    return row.name if row.engine == "torch" else f"{how} on {row.engine}"
