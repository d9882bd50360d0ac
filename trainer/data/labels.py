"""From what a CSV row or a shard's sample says about its class to labels and class names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from prtool.errors import DataError
from prtool.text_safety import printable
from prtool.trainer.data.images import NO_LABEL
from prtool.trainer.data.listing import names_in_order

_Key = TypeVar("_Key", int, str)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Tables with missing values write whole numbers as 3.0.
_WHOLE = re.compile(r"(\d{1,9})(\.0*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class RawLabel:
    """What the data says about one image.

    Attributes:
        place: the image, for messages.
        label: a number, an id or a class name as text; "" for none.
        name: the class name next to a number or an id; "" for none.
    """

    place: str
    label: str
    name: str = ""


def whole_label(text: str) -> int:
    """A label that is written as a number.

    Raises:
        ValueError: it is no whole number from 0 to 999,999,999.
    """
    found = _WHOLE.fullmatch(text)
    if found is None:
        raise ValueError(f"the label '{printable(text)}' is no whole number from 0 to 999,999,999")
    return int(found.group(1))


def resolve_labels(raw: Sequence[RawLabel], names: Sequence[str], where: Path) -> tuple[list[int], tuple[str, ...]]:
    """Labels and class names.

    Numbers are labels from 0, and take their names from next to them or from `names`. Text labels are class names, numbered
    in sorted order; where class names stand next to them they are ids (n01440764), and give way to those. Where no image
    has a label, all become NO_LABEL and there are no class names.

    Args:
        raw: one an image.
        names: class names in label order, from a file next to the data; empty for none.
        where: the data, for messages.

    Raises:
        DataError: some images have labels and others none, some labels are numbers and others text, numbers have no names,
            or one number or id has two.
    """
    labelled = [item for item in raw if item.label]
    if not labelled:
        return [NO_LABEL] * len(raw), ()
    if len(labelled) < len(raw):
        first = next(item.place for item in raw if not item.label)
        raise DataError(
            f"{where}: {len(raw) - len(labelled)} of {len(raw)} images have no label, the first '{printable(first)}'; label all of them, or none"
        )
    numbers = [item for item in raw if _NUMBER.fullmatch(item.label)]
    if not numbers:
        return _by_text(raw, names, where)
    if len(numbers) < len(raw):
        text = next(item.label for item in raw if not _NUMBER.fullmatch(item.label))
        raise DataError(
            f"{where} has numbers as labels, such as {numbers[0].label!r}, and text, such as '{printable(text)}'; "
            "write one kind, with the class names in a column classname if that is numbers"
        )
    return _by_number(raw, names, where)


def _by_number(raw: Sequence[RawLabel], names: Sequence[str], where: Path) -> tuple[list[int], tuple[str, ...]]:
    try:
        numbers = [whole_label(item.label) for item in raw]
    except ValueError as cause:
        raise DataError(f"{where}: {cause}; number the classes from 0, or write their names") from cause
    classnames = tuple(names) or names_in_order(_named(list(zip(numbers, raw, strict=True)), where), where)
    if max(numbers) >= len(classnames):
        raise DataError(f"{where} has label {max(numbers)}, but there are {len(classnames)} class names, for 0 to {len(classnames) - 1}")
    return numbers, classnames


def _by_text(raw: Sequence[RawLabel], names: Sequence[str], where: Path) -> tuple[list[int], tuple[str, ...]]:
    texts = [item.label for item in raw]
    if not names and any(item.name not in ("", item.label) for item in raw):
        named = _named(list(zip(texts, raw, strict=True)), where)
        label_of = {text: label for label, text in enumerate(sorted(named))}
        return [label_of[text] for text in texts], tuple(named[text] for text in sorted(named))
    classnames = tuple(names) or tuple(sorted(set(texts)))
    label_of = {name: label for label, name in enumerate(classnames)}
    unknown = sorted(set(texts) - set(label_of))
    if unknown:
        raise DataError(
            f"{where} has the class '{printable(unknown[0])}', which is not among the {len(classnames)} class names given in a file next to it"
        )
    return [label_of[text] for text in texts], classnames


def _named(keyed: Sequence[tuple[_Key, RawLabel]], where: Path) -> dict[_Key, str]:
    """The class name next to each number or id."""
    found: dict[_Key, str] = {}
    for key, item in keyed:
        if not item.name:
            raise DataError(
                f"{where}: the label of '{printable(item.place)}' is {printable(item.label)}, and nothing says its class name; "
                "write class names as labels, add a column classname, or put classnames.txt (one name a line, in label order) in the same folder"
            )
        if found.setdefault(key, item.name) != item.name:
            two = f"'{printable(found[key])}' and '{printable(item.name)}'"
            raise DataError(f"{where} gives label {printable(key)} two class names, {two} (at '{printable(item.place)}'); one is possible")
    return found
