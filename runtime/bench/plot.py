"""The picture of a benchmark: images a second against keep rate, next to the theoretical speed-up."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prtool.pictures import light_grid, picture, short_name
from prtool.runtime.bench.config import ENCODER
from prtool.runtime.bench.report import BenchReport, BenchRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The Okabe-Ito colours, which stay apart for colour-blind readers.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
_MARKERS = "osv^"
_PANEL_INCHES = (5.4, 4.2)


def plot_report(report: BenchReport, path: Path) -> None:
    """Writes a PNG: one panel per batch, a colour per engine and precision, a marker per mode, the theoretical speed-up as a thin line.

    The encoder's rows are drawn, or the end-to-end ones where there are no others. The thin line starts at the unpruned
    model's rate and grows as multiply-accumulates fall. Raises as `picture`.
    """
    scope = ENCODER if any(row.scope == ENCODER for row in report.rows) else report.rows[0].scope
    rows = [row for row in report.rows if row.scope == scope]
    batches = sorted({row.batch for row in rows})
    width, height = _PANEL_INCHES
    with picture(path, width * len(batches), height + 1.0) as figure:
        panels = figure.subplots(1, len(batches), squeeze=False)[0]
        for axes, batch in zip(panels, batches, strict=True):
            _draw(axes, [row for row in rows if row.batch == batch])
            axes.set_title(f"batch {batch}", fontsize=11)
        panels[0].set_ylabel(f"images/s ({'encoder alone' if scope == ENCODER else 'end to end'})")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * len(batches)), frameon=False, fontsize=9)
        threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
        figure.suptitle(f"{short_name(str(report.model['name']))}: pruned and unpruned, {report.device}, {threads}", fontsize=12)


def _draw(axes: "Axes", rows: Sequence[BenchRow]) -> None:
    colour_of = dict(zip(dict.fromkeys((row.engine, row.precision) for row in rows), COLOURS * len(rows), strict=False))
    for (engine, precision), colour in colour_of.items():
        own = [row for row in rows if (row.engine, row.precision) == (engine, precision)]
        baseline = next(row for row in own if row.is_baseline)
        axes.axhline(baseline.images_per_s, color=colour, linestyle=":", linewidth=1.0, zorder=1)
        promised = sorted({(row.keep, baseline.images_per_s * row.theoretical_speedup) for row in own if not row.is_baseline})
        axes.plot(*zip(*promised, strict=True), color=colour, linewidth=0.7, zorder=1)
        for mode, marker in zip(dict.fromkeys(row.mode for row in own if not row.is_baseline), itertools.cycle(_MARKERS), strict=False):
            points = sorted((row.keep, row.images_per_s) for row in own if row.mode == mode)
            label = f"{engine} {precision}, {mode}"
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle="--", linewidth=1.4, label=label)
    axes.plot([], [], color="#444444", linewidth=0.7, label="theoretical (by MACs)")
    axes.plot([], [], color="#444444", linestyle=":", linewidth=1.0, label="unpruned")
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("share of patches kept")
    axes.set_xticks(sorted({round(row.keep, 3) for row in rows if not row.is_baseline}))
    light_grid(axes)
