"""From what a CSV row or a shard's sample says about its class to labels and class names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prtool.errors import DataError
from prtool.trainer.datasets.images import NO_LABEL
from prtool.trainer.datasets.listing import names_in_order


@dataclass(frozen=True, slots=True)
class RawLabel:
    """What the data says about one image.

    Attributes:
        place: the image, for messages.
        label: a number or a class name as text; "" for none.
        name: the class name beside a number; "" for none.
    """

    place: str
    label: str
    name: str = ""


def resolve_labels(raw: Sequence[RawLabel], names: Sequence[str], where: Path) -> tuple[list[int], tuple[str, ...]]:
    """Labels and class names.

    Text labels are class names, numbered in sorted order. Numbers are labels from 0, and take their names from beside
    them or from `names`. Where no image has a label, all become NO_LABEL and there are no class names.

    Args:
        raw: one an image.
        names: class names in label order, from a file beside the data; empty for none.
        where: the data, for messages.

    Raises:
        DataError: some images have labels and others none, or numbers have no names, or one number has two.
    """
    labelled = [item for item in raw if item.label]
    if not labelled:
        return [NO_LABEL] * len(raw), ()
    if len(labelled) < len(raw):
        first = next(item.place for item in raw if not item.label)
        raise DataError(f"{where}: {len(raw) - len(labelled)} of {len(raw)} images have no label, the first {first!r}; label all of them, or none")
    if not all(item.label.isdecimal() for item in raw):
        return _by_text([item.label for item in raw], names, where)
    numbers = [int(item.label) for item in raw]
    classnames = tuple(names) or names_in_order(_beside(raw, where), where)
    if max(numbers) >= len(classnames):
        raise DataError(f"{where} has label {max(numbers)}, but there are {len(classnames)} class names, for 0 to {len(classnames) - 1}")
    return numbers, classnames


def _by_text(texts: Sequence[str], names: Sequence[str], where: Path) -> tuple[list[int], tuple[str, ...]]:
    classnames = tuple(names) or tuple(sorted(set(texts)))
    label_of = {name: label for label, name in enumerate(classnames)}
    unknown = sorted(set(texts) - set(label_of))
    if unknown:
        raise DataError(f"{where} has the class {unknown[0]!r}, which is not among the {len(classnames)} class names given beside it")
    return [label_of[text] for text in texts], classnames


def _beside(raw: Sequence[RawLabel], where: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for item in raw:
        if not item.name:
            raise DataError(
                f"{where}: the label of {item.place!r} is the number {item.label}, and nothing says its class name; "
                "write class names as labels, add a column classname, or put classnames.txt (one name a line, in label order) beside the data"
            )
        if found.setdefault(int(item.label), item.name) != item.name:
            raise DataError(f"{where} gives label {item.label} two class names, {found[int(item.label)]!r} and {item.name!r}; one is possible")
    return found
