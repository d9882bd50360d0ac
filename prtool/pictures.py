"""Pictures that prtool draws with matplotlib: a figure that becomes a PNG whole or not at all, and the style of all of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prtool.files import PICTURE, PICTURE_METADATA, check_output, new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextlib.contextmanager
def picture(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """An empty figure of so many inches, written to `path` as a PNG once the body has drawn it.

    Raises:
        ConfigError: something else than a picture that prtool drew stands at `path`.
        StorageError: the file cannot be written.
    """
    check_output(path, PICTURE)
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot, draws with Agg: no global state, no window system.
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    yield figure
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata=PICTURE_METADATA)


def light_grid(axes: "Axes") -> None:
    """A light grid behind what is drawn, and no frame above and to the right."""
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def short_name(name: str) -> str:
    """The last part of a path or of a `local-dir:`, `hf:` or `hf-hub:` name."""
    return name.rstrip("/").split("/")[-1].split(":")[-1]
