"""Several data sets as one, for a predictor that is trained on all of them."""

import os
from collections.abc import Sequence
from pathlib import Path

from prtool.errors import DataError
from prtool.trainer.data.images import NO_LABEL, ImageSet


def merge(sets: Sequence[ImageSet]) -> ImageSet:
    """One set of all images, in order.

    Its root is the nearest folder that holds all roots, so `file`, `source` and `digest` work as for any set. Class
    names are put one after the other, and labels are shifted by those before them: two sets that both know "lotus"
    keep two classes. Images without a label stay without one.

    Raises:
        DataError: there is no set, or the roots have no folder in common (on different drives).
    """
    if not sets:
        raise DataError("there are no sets to merge; give at least one")
    if len(sets) == 1:
        return sets[0]
    roots = [item.root.resolve() for item in sets]
    try:
        common = Path(os.path.commonpath(roots))
    except ValueError as cause:
        raise DataError(f"the sets {', '.join(map(str, roots))} have no folder in common ({cause}); put them on one drive") from cause
    paths: list[str] = []
    labels: list[int] = []
    names: list[str] = []
    for root, item in zip(roots, sets, strict=True):
        paths += [(root.relative_to(common) / path).as_posix() for path in item.paths]
        labels += [label if label == NO_LABEL else label + len(names) for label in item.labels]
        names += item.classnames
    origin = ",".join(item.origin for item in sets) if all(item.origin for item in sets) else ""
    note = "; ".join(f"{item.origin or item.root}: {item.note}" for item in sets if item.note)
    return ImageSet(common, tuple(paths), tuple(labels), tuple(names), origin, note)
